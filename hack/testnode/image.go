package testnode

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Names of the images that every node has. There is no registry: pods that use
// them say imagePullPolicy: Never.
const (
	PauseImage    = "docker.io/memqos/pause:test"
	BusyboxImage  = "docker.io/memqos/busybox:test"
	WorkloadImage = "docker.io/memqos/workload:test"
	LimitsImage   = "docker.io/memqos/limits:test"
)

// imageRecipe changes whenever buildImages would make something else of the
// same sources.
const imageRecipe = "2"

// image is a container image of one layer.
type image struct {
	name       string
	files      []file
	entrypoint []string
	command    []string
}

func buildImages(ctx context.Context, built, root, dir string, busybox []byte) error {
	workloadPath := filepath.Join(built, "workload")
	static := map[string][]byte{}
	for _, name := range []string{"pause", "limits"} {
		path := filepath.Join(built, name)
		err := command(ctx, nil, "gcc", "-O2", "-static", "-s", "-Wall", "-Wextra", "-Werror", "-o", path, filepath.Join(dir, name, name+".c"))
		if err != nil {
			return err
		}
		if static[name], err = os.ReadFile(path); err != nil {
			return err
		}
	}
	if err := goBuild(ctx, root, "./hack/testnode/images/workload", workloadPath, ""); err != nil {
		return err
	}
	workload, err := os.ReadFile(workloadPath)
	if err != nil {
		return err
	}
	applets, err := commandOutput(ctx, nil, "/bin/busybox", "--list")
	if err != nil {
		return err
	}
	tmp := file{path: "tmp", mode: fs.ModeDir | fs.ModeSticky | 0o777}
	box := []file{
		tmp,
		{"bin/busybox", 0o755, busybox},
		{"etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")},
		{"etc/group", 0o644, []byte("root:x:0:\nnogroup:x:65534:\n")},
		{path: "root", mode: fs.ModeDir | 0o700},
	}
	for _, applet := range strings.Fields(string(applets)) {
		if applet != "busybox" {
			box = append(box, symlink("bin/"+applet, "busybox"))
		}
	}
	archive, err := dockerArchive([]image{
		{name: PauseImage, files: []file{{"pause", 0o755, static["pause"]}}, entrypoint: []string{"/pause"}},
		{name: LimitsImage, files: []file{{"limits", 0o755, static["limits"]}}, entrypoint: []string{"/limits"}},
		{name: BusyboxImage, files: box, command: []string{"sh"}},
		{name: WorkloadImage, files: []file{tmp, {"workload", 0o755, workload}}, entrypoint: []string{"/workload"}, command: []string{"sleep"}},
	})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(built, "images.tar"), archive, 0o644)
}

// dockerArchive writes images in the format of "docker save", which "ctr images
// import" reads: the same images give the same bytes.
// Format: github.com/moby/docker-image-spec, "Combined Image JSON + Filesystem Changeset Format".
func dockerArchive(images []image) ([]byte, error) {
	type manifestEntry struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	var manifest []manifestEntry
	var entries []file
	for _, image := range images {
		var layer bytes.Buffer
		if err := writeTar(&layer, withDirectories(image.files)); err != nil {
			return nil, fmt.Errorf("write the layer of %s: %w", image.name, err)
		}
		layerDigest := sha256Hex(layer.Bytes())
		config, err := json.Marshal(map[string]any{
			"architecture": "amd64",
			"os":           "linux",
			"config": map[string]any{
				"Entrypoint": image.entrypoint,
				"Cmd":        image.command,
				"Env":        []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
			},
			"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + layerDigest}},
		})
		if err != nil {
			return nil, err
		}
		configName, layerName := sha256Hex(config)+".json", layerDigest+".tar"
		entries = append(entries, file{configName, 0o644, config}, file{layerName, 0o644, layer.Bytes()})
		manifest = append(manifest, manifestEntry{configName, []string{image.name}, []string{layerName}})
	}
	encoded, err := json.Marshal(manifest)
	if err != nil {
		return nil, err
	}
	entries = append(entries, file{"manifest.json", 0o644, encoded})
	var out bytes.Buffer
	if err := writeTar(&out, entries); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

func writeTar(w io.Writer, files []file) error {
	out := tar.NewWriter(w)
	for _, f := range files {
		header := &tar.Header{Name: f.path, Mode: int64(f.mode.Perm()), Format: tar.FormatPAX}
		if f.mode&fs.ModeSticky != 0 {
			header.Mode |= 0o1000
		}
		switch {
		case f.mode.IsDir():
			header.Typeflag, header.Name = tar.TypeDir, f.path+"/"
		case f.mode&fs.ModeSymlink != 0:
			header.Typeflag, header.Linkname = tar.TypeSymlink, string(f.data)
		default:
			header.Typeflag, header.Size = tar.TypeReg, int64(len(f.data))
		}
		if err := out.WriteHeader(header); err != nil {
			return errors.Join(err, out.Close())
		}
		if header.Typeflag == tar.TypeReg {
			if _, err := out.Write(f.data); err != nil {
				return errors.Join(err, out.Close())
			}
		}
	}
	return out.Close()
}

func sha256Hex(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
