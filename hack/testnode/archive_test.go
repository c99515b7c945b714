package testnode

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var someFiles = []file{
	{"bin/tool", 0o755, []byte("#!tool\n")},
	symlink("bin/alias", "tool"),
	{path: "tmp", mode: fs.ModeDir | fs.ModeSticky | 0o777},
}

func TestWithDirectories(t *testing.T) {
	var got []string
	for _, f := range withDirectories(append([]file{{path: "a/b/c"}}, someFiles...)) {
		got = append(got, f.path)
	}
	want := []string{"a", "a/b", "a/b/c", "bin", "bin/alias", "bin/tool", "tmp"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// cpio itself is the judge, where it is installed.
func TestCpio(t *testing.T) {
	archive := cpio(someFiles)
	if len(archive)%4 != 0 {
		t.Errorf("length %d is no multiple of 4: what follows would not be found", len(archive))
	}
	tool, err := exec.LookPath("cpio")
	if err != nil {
		t.Skip("no cpio here")
	}
	list := exec.Command(tool, "--list", "--verbose", "--quiet", "--numeric-uid-gid")
	list.Stdin = bytes.NewReader(archive)
	output, err := list.CombinedOutput()
	if err != nil {
		t.Fatalf("cpio: %v: %s", err, output)
	}
	var got []string
	for line := range strings.Lines(string(output)) {
		fields := strings.Fields(line)
		got = append(got, fields[0]+" "+fields[4]+" "+strings.Join(fields[8:], " "))
	}
	want := []string{"drwxr-xr-x 0 bin", "lrwxrwxrwx 4 bin/alias -> tool", "-rwxr-xr-x 7 bin/tool", "drwxrwxrwx 0 tmp"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestDockerArchive(t *testing.T) {
	images := []image{{name: "example.org/one:test", files: someFiles, entrypoint: []string{"/bin/tool"}}}
	archive, err := dockerArchive(images)
	if err != nil {
		t.Fatal(err)
	}
	again, err := dockerArchive(images)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(archive, again) {
		t.Error("the same image gave other bytes")
	}

	entries := readTar(t, archive)
	var manifest []struct {
		Config           string
		RepoTags, Layers []string
	}
	if err := json.Unmarshal(entries["manifest.json"], &manifest); err != nil {
		t.Fatal(err)
	}
	if len(manifest) != 1 || len(manifest[0].Layers) != 1 {
		t.Fatalf("manifest: %s", entries["manifest.json"])
	}
	if diff := cmp.Diff([]string{"example.org/one:test"}, manifest[0].RepoTags); diff != "" {
		t.Errorf("tags (-want +got):\n%s", diff)
	}
	layer := entries[manifest[0].Layers[0]]
	var config struct {
		Config struct{ Entrypoint []string }
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		}
	}
	if err := json.Unmarshal(entries[manifest[0].Config], &config); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"sha256:" + sha256Hex(layer)}, config.RootFS.DiffIDs); diff != "" {
		t.Errorf("layer digest (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"/bin/tool"}, config.Config.Entrypoint); diff != "" {
		t.Errorf("entrypoint (-want +got):\n%s", diff)
	}
	if got := readTar(t, layer); string(got["bin/tool"]) != "#!tool\n" || string(got["bin/alias"]) != "-> tool" {
		t.Errorf("layer: %q", got)
	}
}

// readTar maps names to contents, or to "-> target".
func readTar(t *testing.T, archive []byte) map[string][]byte {
	t.Helper()
	entries := make(map[string][]byte)
	reader := tar.NewReader(bytes.NewReader(archive))
	for {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return entries
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(reader)
		if err != nil {
			t.Fatal(err)
		}
		if header.Linkname != "" {
			content = []byte("-> " + header.Linkname)
		}
		entries[header.Name] = content
	}
}
