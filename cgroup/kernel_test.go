//go:build kernel

package cgroup

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/memqos/memqos/config"
	"github.com/memqos/memqos/memory"
)

// The tests of this file need uid 0 and a cgroup2 hierarchy with memory: the e2e tests
// run them on the node.

// kernelTree makes /NAME/kubepods in the cgroup2 hierarchy, with cgroups beneath.
func kernelTree(t *testing.T, cgroups ...string) *Tree {
	t.Helper()
	const mount = "/sys/fs/cgroup"
	root := filepath.Join(mount, t.Name())
	dirs := []string{root, filepath.Join(root, "kubepods")}
	for _, c := range cgroups {
		dirs = append(dirs, filepath.Join(root, "kubepods", c))
	}
	for i, dir := range dirs {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.Remove(dir) }) // a test may have removed it
		if i < 2 {
			if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+memory"), 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	tree, err := Open(mount, NewLayout(config.Cgroupfs, "/"+t.Name()))
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

// anew removes a cgroup and makes one of the same name.
func anew(t *testing.T, dir string) {
	t.Helper()
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
}

// What was meant for a cgroup that is gone never gets into another one of its name.
func TestKernelGone(t *testing.T) {
	tree := kernelTree(t, "pod")
	pod := tree.Layout.Root + "/pod"
	dir := tree.dir(pod)
	untouched := func() {
		t.Helper()
		if v, err := tree.Value(pod, memory.High); err != nil || v != memory.Unlimited {
			t.Errorf("memory.high of the new cgroup is %v (%v), want max", v, err)
		}
	}

	d, err := tree.Open(pod)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Write(memory.High, 1<<20); err != nil {
		t.Fatal(err)
	}
	// Between the open of the cgroup and that of the file.
	anew(t, dir)
	if err := d.Write(memory.High, 2<<20); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a write through a removed directory: %v, want fs.ErrNotExist", err)
	}
	if _, err := d.Value(memory.High); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a read through a removed directory: %v, want fs.ErrNotExist", err)
	}
	if tree.Is(pod, d.Inode) {
		t.Error("a new cgroup is taken for the old one of its name")
	}
	untouched()
	d.Close()

	// Between the open of the file and the write.
	d, err = tree.Open(pod)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	fd, err := openBeneath(d.fd, string(memory.High), unix.O_RDWR|unix.O_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd) //nolint:errcheck // of a removed cgroup
	anew(t, dir)
	if err := d.write(fd, memory.High, 3<<20); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a write to a removed file: %v, want fs.ErrNotExist", err)
	}
	untouched()
}

// What is mounted over a cgroup is not written to.
func TestKernelMount(t *testing.T) {
	tree := kernelTree(t, "pod", "other")
	pod, other := tree.Layout.Root+"/pod", tree.Layout.Root+"/other"
	if err := unix.Mount(tree.dir(other), tree.dir(pod), "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer unmount(t, tree.dir(pod))
	if _, err := tree.Open(pod); !errors.Is(err, unix.EXDEV) {
		t.Errorf("opened what is mounted over a cgroup: %v, want EXDEV", err)
	}
	// A file of it neither.
	if err := unix.Mount(filepath.Join(tree.dir(other), "memory.low"), filepath.Join(tree.dir(other), "memory.high"), "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer unmount(t, filepath.Join(tree.dir(other), "memory.high"))
	d, err := tree.Open(other)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := d.Write(memory.High, 1<<20); !errors.Is(err, unix.EXDEV) {
		t.Errorf("wrote to what is mounted over a file: %v, want EXDEV", err)
	}
	if v, err := d.Value(memory.Low); err != nil || v != 0 {
		t.Errorf("memory.low is %v (%v), want 0", v, err)
	}
}

// unmount detaches: the kubelet and systemd walk the tree as well, and a walk
// that is in the mount at that moment makes it busy.
func unmount(t *testing.T, dir string) {
	t.Helper()
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
		t.Error(err)
	}
}

// A kill is reported though the kernel has had no room for what it knew of the files.
func TestKernelEvents(t *testing.T) {
	tree := kernelTree(t, "pod")
	pod := tree.Layout.Root + "/pod"
	w, err := tree.Watch()
	if err != nil {
		t.Fatal(err)
	}
	counted := make(chan string, 1024)
	ended := make(chan error, 1)
	go func() {
		ended <- w.Run(t.Context(), func(e Event) {
			if e.File == MemoryEvents {
				counted <- e.Cgroup
			}
		})
	}()
	defer func() {
		if err := errors.Join(w.Close(), <-ended); err != nil {
			t.Error(err)
		}
	}()
	d, err := tree.Open(pod)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if _, _, err := d.Events(); err != nil {
		t.Fatal(err)
	}
	if err := d.Write(memory.Max, 8<<20); err != nil {
		t.Fatal(err)
	}
	for range 3 { // what was used a moment ago is spared at first
		if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0); err != nil {
			t.Fatal(err)
		}
	}
	fd, err := unix.Open(tree.dir(pod), unix.O_PATH, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd) //nolint:errcheck // O_PATH
	// Whatever runs this test may be exempt from being killed.
	cmd := exec.Command("sh", "-c", "echo 0 >/proc/self/oom_score_adj; exec dd if=/dev/zero of=/dev/null bs=64M count=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: fd}
	if err := cmd.Run(); err == nil {
		t.Fatal("a program of 64 MiB was not killed at 8")
	}
	missing := map[string]bool{pod: true, tree.Layout.Root: true}
	for deadline := time.After(30 * time.Second); len(missing) > 0; {
		select {
		case dir := <-counted:
			delete(missing, dir)
		case <-deadline:
			t.Fatalf("no event of memory.events of %v", slices.Collect(maps.Keys(missing)))
		}
	}
}

// The kernel floors to a page; what it does not hold as written is told.
func TestKernelPages(t *testing.T) {
	tree := kernelTree(t, "pod")
	d, err := tree.Open(tree.Layout.Root + "/pod")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for _, file := range memory.Files {
		if err := d.Write(file, 1<<20); err != nil {
			t.Error(err)
		}
		var notKept *NotKeptError
		if err := d.Write(file, 1<<20+1); !errors.As(err, &notKept) || notKept.Got != 1<<20 {
			t.Errorf("%s of 1 MiB and a byte: %v, want that the kernel floors it", file, err)
		}
	}
}
