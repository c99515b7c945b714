// Package cgrouptest owns fixture trees: ordinary directories laid out as a
// node's cgroups, described in text.
package cgrouptest

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Files are the columns of a description, after the path.
var Files = []string{"memory.min", "memory.low", "memory.high", "memory.max", "memory.current"}

// Make makes a tree in a temporary directory and returns that directory. Each
// line names a cgroup and gives the values of Files; those left out are the
// kernel's defaults. A line may begin with #.
//
//	kubepods.slice                                      0 0 max 8589934592
//	kubepods.slice/kubepods-burstable.slice
func Make(t testing.TB, description string) string {
	t.Helper()
	dir := t.TempDir()
	Add(t, dir, description)
	return dir
}

// Add makes further cgroups in a tree.
func Add(t testing.TB, dir, description string) {
	t.Helper()
	for line := range strings.Lines(description) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0][0] == '#' {
			continue
		}
		cgroup := filepath.Join(dir, fields[0])
		values := []string{"0", "0", "max", "max", "0"}
		copy(values, fields[1:])
		if err := os.MkdirAll(cgroup, 0o755); err != nil {
			t.Fatal(err)
		}
		for i, file := range Files {
			Write(t, filepath.Join(cgroup, file), values[i])
		}
		Write(t, filepath.Join(cgroup, "cgroup.events"), "populated 1\nfrozen 0")
		Write(t, filepath.Join(cgroup, "memory.events"), "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\noom_group_kill 0")
		Write(t, filepath.Join(cgroup, "memory.stat"), "anon 0\nfile 0")
	}
}

// Write writes a file as the kernel shows one, with a newline.
func Write(t testing.TB, file, value string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(value+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
}

// Read reads a file without its newline.
func Read(t testing.TB, file string) string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(bytes.TrimSpace(data))
}
