package cgroup

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/memqos/memqos/config"
)

const hash = "0b7b7ba7a9f1b5b1b1c8a8d5b3f0c0de" // a static pod's uid

// configJSON is what a runtime writes, in size and in the fields that are read.
func configJSON(t testing.TB, cgroupsPath string, annotations map[string]string) []byte {
	t.Helper()
	var env, syscalls []string
	for i := range 100 {
		env = append(env, fmt.Sprintf("SERVICE_%d_PORT=tcp://10.96.0.1:443", i))
	}
	for i := range 350 {
		syscalls = append(syscalls, fmt.Sprintf("syscall_%d", i))
	}
	data, err := json.Marshal(map[string]any{
		"ociVersion":  "1.1.0",
		"process":     map[string]any{"args": []string{"/pause"}, "env": env, "cwd": "/"},
		"annotations": annotations,
		"linux": map[string]any{
			"cgroupsPath": cgroupsPath,
			"resources":   map[string]any{"memory": map[string]any{"limit": 134217728}},
			"seccomp":     map[string]any{"syscalls": []any{map[string]any{"names": syscalls, "action": "SCMP_ACT_ALLOW"}}},
			"maskedPaths": []string{"/proc/kcore"},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func containerdAnnotations(kind, uid, container string) map[string]string {
	a := map[string]string{
		"io.kubernetes.cri.container-type":    kind,
		"io.kubernetes.cri.sandbox-id":        id,
		"io.kubernetes.cri.sandbox-uid":       uid,
		"io.kubernetes.cri.sandbox-namespace": "default",
		"io.kubernetes.cri.sandbox-name":      "web-0.example",
	}
	if container != "" {
		a["io.kubernetes.cri.container-name"] = container
	}
	return a
}

func crioAnnotations(kind, uid, container string) map[string]string {
	return map[string]string{
		"io.kubernetes.cri-o.ContainerType": kind,
		"io.kubernetes.container.name":      container,
		"io.kubernetes.pod.uid":             uid,
		"io.kubernetes.pod.namespace":       "default",
		"io.kubernetes.pod.name":            "web-0.example",
	}
}

// bundleFixture returns Bundles of two roots, the first of which is not there, and
// the config.json of the container id in the second, which is reached by a link.
func bundleFixture(t testing.TB, data []byte) (b *Bundles, file string) {
	t.Helper()
	dir := t.TempDir()
	file = filepath.Join(dir, "run", "k8s.io", id, "userdata", "config.json")
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("run", filepath.Join(dir, "var-run")); err != nil {
		t.Fatal(err)
	}
	if data != nil {
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b, err := NewBundles([]string{filepath.Join(dir, "later") + "/<id>/config.json", filepath.Join(dir, "var-run/k8s.io") + "/<id>/userdata/config.json"})
	if err != nil {
		t.Fatal(err)
	}
	return b, file
}

func TestIdentify(t *testing.T) {
	want := Identity{PodUID: uid, Namespace: "default", Pod: "web-0.example", Container: "app"}
	sandbox := Identity{Sandbox: true, PodUID: uid, Namespace: "default", Pod: "web-0.example"}
	static := want
	static.PodUID = hash
	const escaped = "pod6a1f3b52_7a3c_4a2c_9a55_0d3d0d0d0d0d.slice"
	spoofed := crioAnnotations("container", uid, "app")
	maps.Copy(spoofed, containerdAnnotations("sandbox", "other", "other"))
	for _, tc := range []struct {
		name        string
		driver      config.CgroupDriver
		root        string
		class       corev1.PodQOSClass
		uid         string
		cgroup      string // beneath the pod's
		cgroupsPath string
		annotations map[string]string
		want        Identity
	}{
		{"containerd systemd", config.Systemd, "/", corev1.PodQOSBurstable, uid, "cri-containerd-" + id + ".scope", "kubepods-burstable-" + escaped + ":cri-containerd:" + id, containerdAnnotations("container", uid, "app"), want},
		{"containerd systemd kind", config.Systemd, "/kubelet", corev1.PodQOSBestEffort, uid, "cri-containerd-" + id + ".scope", "kubelet-kubepods-besteffort-" + escaped + ":cri-containerd:" + id, containerdAnnotations("container", uid, "app"), want},
		{"containerd cgroupfs", config.Cgroupfs, "/", corev1.PodQOSGuaranteed, uid, id, "/kubepods/pod" + uid + "/" + id, containerdAnnotations("container", uid, "app"), want},
		{"containerd sandbox", config.Systemd, "/", corev1.PodQOSGuaranteed, uid, "cri-containerd-" + id + ".scope", "kubepods-" + escaped + ":cri-containerd:" + id, containerdAnnotations("sandbox", uid, ""), sandbox},
		{"static pod", config.Systemd, "/", corev1.PodQOSBurstable, hash, "cri-containerd-" + id + ".scope", "kubepods-burstable-pod" + hash + ".slice:cri-containerd:" + id, containerdAnnotations("container", hash, "app"), static},
		{"cri-o systemd", config.Systemd, "/", corev1.PodQOSBurstable, uid, "crio-" + id + ".scope", "kubepods-burstable-" + escaped + ":crio:" + id, crioAnnotations("container", uid, "app"), want},
		{"cri-o cgroupfs", config.Cgroupfs, "/", corev1.PodQOSBurstable, uid, "crio-" + id, "/kubepods/burstable/pod" + uid + "/crio-" + id, crioAnnotations("container", uid, "app"), want},
		{"cri-o sandbox", config.Systemd, "/", corev1.PodQOSBurstable, uid, "crio-" + id + ".scope", "kubepods-burstable-" + escaped + ":crio:" + id, crioAnnotations("sandbox", uid, "POD"), sandbox},
		// CRI-O passes a pod's own annotations on.
		{"cri-o with containerd's annotations", config.Cgroupfs, "/", corev1.PodQOSBurstable, uid, "crio-" + id, "/kubepods/burstable/pod" + uid + "/crio-" + id, spoofed, want},
	} {
		t.Run(tc.name, func(t *testing.T) {
			layout := NewLayout(tc.driver, tc.root)
			pod, err := layout.Pod(tc.class, tc.uid)
			if err != nil {
				t.Fatal(err)
			}
			b, _ := bundleFixture(t, configJSON(t, tc.cgroupsPath, tc.annotations))
			got, err := b.Identify(layout, path.Join(pod, tc.cgroup))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// systemdContainer is where the bundles of the tests that follow belong.
func systemdContainer(t testing.TB) (layout Layout, cgroup, cgroupsPath string) {
	t.Helper()
	layout = NewLayout(config.Systemd, "/")
	pod, err := layout.Pod(corev1.PodQOSBurstable, uid)
	if err != nil {
		t.Fatal(err)
	}
	return layout, path.Join(pod, "cri-containerd-"+id+".scope"), path.Base(pod) + ":cri-containerd:" + id
}

// A config.json that says something else than the place of the cgroup.
func TestIdentifyContradiction(t *testing.T) {
	layout, cgroup, cgroupsPath := systemdContainer(t)
	const key = "io.kubernetes.cri."
	for _, tc := range []struct {
		name, key, value, field string
	}{
		{"another pod's uid", key + "sandbox-uid", "6a1f3b52-7a3c-4a2c-9a55-0d3d0d0d0d0e", "annotations[io.kubernetes.cri.sandbox-uid]"},
		{"escaped uid", key + "sandbox-uid", strings.ReplaceAll(uid, "-", "_"), "annotations[io.kubernetes.cri.sandbox-uid]"},
		{"path for a uid", key + "sandbox-uid", "../" + uid, "annotations[io.kubernetes.cri.sandbox-uid]"},
		{"no uid", key + "sandbox-uid", "", "annotations[io.kubernetes.cri.sandbox-uid]"},
		{"unknown type", key + "container-type", "Sandbox", "annotations[io.kubernetes.cri.container-type]"},
		{"no type", key + "container-type", "", "annotations[io.kubernetes.cri.container-type]"},
		{"container name", key + "container-name", "app\n", "annotations[io.kubernetes.cri.container-name]"},
		{"no container name", key + "container-name", "", "annotations[io.kubernetes.cri.container-name]"},
		{"long container name", key + "container-name", strings.Repeat("a", 64), "annotations[io.kubernetes.cri.container-name]"},
		{"very long container name", key + "container-name", strings.Repeat("a", 500_000), "annotations[io.kubernetes.cri.container-name]"},
		{"namespace", key + "sandbox-namespace", `a"b`, "annotations[io.kubernetes.cri.sandbox-namespace]"},
		{"pod name", key + "sandbox-name", "a/b", "annotations[io.kubernetes.cri.sandbox-name]"},
		{"another container's path", "", strings.Replace(cgroupsPath, "0123", "3210", 1), "linux.cgroupsPath"},
		{"another pod's path", "", strings.Replace(cgroupsPath, "6a1f", "f1a6", 1), "linux.cgroupsPath"},
		{"another class's path", "", strings.Replace(cgroupsPath, "-burstable", "", 1), "linux.cgroupsPath"},
		{"cgroupfs path", "", "/" + cgroup, "linux.cgroupsPath"},
		{"no path", "", "", "linux.cgroupsPath"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			annotations, in := containerdAnnotations("container", uid, "app"), cgroupsPath
			if tc.key == "" {
				in = tc.value
			} else {
				annotations[tc.key] = tc.value
			}
			b, file := bundleFixture(t, configJSON(t, in, annotations))
			got, err := b.Identify(layout, cgroup)
			var lie *BundleError
			if !errors.As(err, &lie) {
				t.Fatalf("got %+v, %v, want a BundleError", got, err)
			}
			// The path as it was given, by way of the link.
			if lie.Field != tc.field || lie.Value != tc.value[:min(len(tc.value), 128)] || filepath.Base(lie.Path) != filepath.Base(file) || !strings.Contains(lie.Path, id) {
				t.Errorf("got %+v, want field %s, value %q, path %s", lie, tc.field, tc.value, file)
			}
			if len(err.Error()) > 1024 {
				t.Errorf("the error has %d bytes", len(err.Error()))
			}
		})
	}
}

// A config.json that is none.
func TestIdentifyMalformed(t *testing.T) {
	layout, cgroup, cgroupsPath := systemdContainer(t)
	good := string(configJSON(t, cgroupsPath, containerdAnnotations("container", uid, "app")))
	if _, err := parseBundle([]byte(good), layout, cgroup); err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string]string{
		"empty":                "",
		"null":                 "null",
		"array":                "[]",
		"torn":                 good[:len(good)/2],
		"trailing":             good + "{}",
		"annotation no string": strings.Replace(good, `"app"`, `["app"]`, 1),
		"annotations no map":   `{"annotations":[],"linux":{}}`,
		"linux no map":         `{"annotations":{},"linux":"x"}`,
		"other case":           strings.Replace(good, `"annotations"`, `"Annotations"`, 1),
		"annotations twice":    `{"annotations":{},` + good[1:],
		"annotation twice":     strings.Replace(good, `"annotations":{`, `"annotations":{"io.kubernetes.cri.container-name":"app",`, 1),
		"deep":                 strings.Repeat("[", maxBundle),
		"deep object":          strings.Repeat(`{"annotations":`, maxBundle/20),
		"deep, unknown":        `{"x":` + strings.Repeat("[", 20_000) + strings.Repeat("]", 20_000) + "," + good[1:],
		"NUL":                  "\x00" + good,
		"UTF-16":               "\xff\xfe{\x00}\x00",
	} {
		t.Run(name, func(t *testing.T) {
			var lie *BundleError
			if got, err := parseBundle([]byte(data), layout, cgroup); !errors.As(err, &lie) {
				t.Errorf("got %+v, %v, want a BundleError", got, err)
			}
		})
	}
}

// Something else in the place of config.json. A FIFO that blocked would hang here.
func TestIdentifyNoPlainFile(t *testing.T) {
	layout, cgroup, cgroupsPath := systemdContainer(t)
	good := configJSON(t, cgroupsPath, containerdAnnotations("container", uid, "app"))
	write := func(t *testing.T, file string, data []byte) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, tc := range map[string]struct {
		field string
		put   func(t *testing.T, file string) error
	}{
		"symbolic link": {"file", func(t *testing.T, file string) error {
			write(t, file+".real", good)
			return os.Symlink("config.json.real", file)
		}},
		"linked directory": {"file", func(t *testing.T, file string) error {
			dir := filepath.Dir(file)
			write(t, filepath.Join(filepath.Dir(dir), "elsewhere", "config.json"), good)
			return errors.Join(os.Remove(dir), os.Symlink("elsewhere", dir))
		}},
		"linked bundle": {"file", func(t *testing.T, file string) error {
			dir := filepath.Dir(filepath.Dir(file))
			write(t, filepath.Join(filepath.Dir(dir), "elsewhere", "userdata", "config.json"), good)
			return errors.Join(os.RemoveAll(dir), os.Symlink("elsewhere", dir))
		}},
		"FIFO":      {"file", func(_ *testing.T, file string) error { return unix.Mkfifo(file, 0o600) }},
		"directory": {"file", func(_ *testing.T, file string) error { return os.Mkdir(file, 0o700) }},
		"socket": {"file", func(_ *testing.T, file string) error {
			return unix.Mknod(file, unix.S_IFSOCK|0o600, 0)
		}},
		"device": {"file", func(t *testing.T, file string) error {
			err := unix.Mknod(file, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 5))) // /dev/zero
			if errors.Is(err, unix.EPERM) {
				t.Skip("may not make devices")
			}
			return err
		}},
		"file for a directory": {"file", func(_ *testing.T, file string) error {
			dir := filepath.Dir(file)
			return errors.Join(os.Remove(dir), os.WriteFile(dir, good, 0o600))
		}},
		"huge": {"size", func(_ *testing.T, file string) error {
			return errors.Join(os.WriteFile(file, good, 0o600), os.Truncate(file, 1<<40))
		}},
		"one byte too large": {"size", func(_ *testing.T, file string) error {
			return os.WriteFile(file, append(good, strings.Repeat(" ", maxBundle+1-len(good))...), 0o600)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			b, file := bundleFixture(t, nil)
			if err := tc.put(t, file); err != nil {
				t.Fatal(err)
			}
			got, err := b.Identify(layout, cgroup)
			var lie *BundleError
			if !errors.As(err, &lie) || lie.Field != tc.field {
				t.Errorf("got %+v, %v, want a BundleError of the %s", got, err, tc.field)
			}
		})
	}
}

func TestIdentifyLargest(t *testing.T) {
	layout, cgroup, cgroupsPath := systemdContainer(t)
	data := configJSON(t, cgroupsPath, containerdAnnotations("container", uid, "app"))
	b, _ := bundleFixture(t, append(data, strings.Repeat(" ", maxBundle-len(data))...))
	if _, err := b.Identify(layout, cgroup); err != nil {
		t.Error(err)
	}
}

func TestIdentifyNotThere(t *testing.T) {
	layout, cgroup, _ := systemdContainer(t)
	b, _ := bundleFixture(t, nil)
	if _, err := b.Identify(layout, cgroup); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want fs.ErrNotExist", err)
	}
	none, err := NewBundles(nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := none.Identify(layout, cgroup); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no roots: got %v, want fs.ErrNotExist", err)
	}
}

// What is not the name of a container's cgroup is never part of a path.
func TestIdentifyNoContainer(t *testing.T) {
	layout, cgroup, _ := systemdContainer(t)
	b, _ := bundleFixture(t, nil)
	for _, bad := range []string{"", "/", path.Dir(cgroup), path.Join(cgroup, CrunChild), path.Dir(cgroup) + "/crio-conmon-" + id + ".scope", cgroup + "/.."} {
		_, err := b.Identify(layout, bad)
		var lie *BundleError
		if err == nil || errors.Is(err, fs.ErrNotExist) || errors.As(err, &lie) {
			t.Errorf("%q: got %v, want an error of the name", bad, err)
		}
	}
}

func TestNewBundles(t *testing.T) {
	if _, err := NewBundles(config.DefaultBundlePaths()); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{"", "/run", "/run/<id>", "run/<id>/config.json", "/<id>/config.json", "/run/<id>/<id>/config.json", "/run/../<id>/config.json", "/run/<id>/../config.json", "/run/x-<id>/config.json"} {
		if _, err := NewBundles([]string{bad}); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

// Whatever is in the file: what comes out is what a plain reading of it gives,
// belongs to the cgroup's pod, and can be put into a log line or a label.
func FuzzBundle(f *testing.F) {
	layout, cgroup, cgroupsPath := systemdContainer(f)
	crio := path.Join(path.Dir(cgroup), "crio-"+id+".scope")
	for cgroupsPath, annotations := range map[string][]map[string]string{
		cgroupsPath: {containerdAnnotations("container", uid, "app"), containerdAnnotations("sandbox", uid, "")},
		strings.Replace(cgroupsPath, "cri-containerd", "crio", 1): {crioAnnotations("container", uid, "app"), crioAnnotations("sandbox", uid, "POD")},
	} {
		for _, a := range annotations { // small, for the fuzzer's sake
			data, err := json.Marshal(map[string]any{"annotations": a, "linux": map[string]any{"cgroupsPath": cgroupsPath}})
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data)
		}
	}
	f.Add([]byte(`{"annotations":{"annotations":{}},"linux":null}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, cgroup := range []string{cgroup, crio} {
			got, err := parseBundle(data, layout, cgroup)
			if err != nil {
				var lie *BundleError
				if !errors.As(err, &lie) || got != (Identity{}) {
					t.Fatalf("got %+v, %v", got, err)
				}
				continue
			}
			var plain map[string]any // a struct would take "Annotations" too
			if err := json.Unmarshal(data, &plain); err != nil {
				t.Fatalf("accepted what encoding/json refuses: %v", err)
			}
			annotations, _ := plain["annotations"].(map[string]any)
			key := "io.kubernetes.cri.container-name"
			if cgroup == crio {
				key = "io.kubernetes.container.name"
			}
			if got.PodUID != uid || got.Sandbox != (got.Container == "") || (!got.Sandbox && annotations[key] != got.Container) {
				t.Fatalf("got %+v of %v", got, annotations)
			}
			for _, name := range []string{got.Namespace, got.Pod, got.Container} {
				if len(name) > 253 || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789.-") != "" {
					t.Fatalf("name %q", name)
				}
			}
		}
	})
}

func BenchmarkIdentify(b *testing.B) {
	layout, cgroup, cgroupsPath := systemdContainer(b)
	data := configJSON(b, cgroupsPath, containerdAnnotations("container", uid, "app"))
	bundles, file := bundleFixture(b, data)
	run := func(name string, failing bool) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := bundles.Identify(layout, cgroup); (err != nil) != failing {
					b.Fatal(err)
				}
			}
		})
	}
	run("container", false)
	if err := os.WriteFile(file, []byte(strings.Repeat("[", maxBundle)), 0o600); err != nil {
		b.Fatal(err)
	}
	run("deep 1 MiB", true)
	if err := os.WriteFile(file, []byte(`{"x":"`+strings.Repeat("a", maxBundle-8)+`"}`), 0o600); err != nil {
		b.Fatal(err)
	}
	run("long 1 MiB", true)
	if err := os.Remove(file); err != nil {
		b.Fatal(err)
	}
	run("not there", true)
}
