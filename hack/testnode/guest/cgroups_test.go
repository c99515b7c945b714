package main

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

func TestBeneathKubepods(t *testing.T) {
	for path, want := range map[string]bool{
		"kubepods": true,
		"kubepods.slice/kubepods-besteffort.slice": true,
		"kubelet/kubepods/burstable":               true,
		"kubelet.slice/kubelet-kubepods.slice":     true,
		"system.slice/kubelet.service":             false,
		"kubelet":                                  false,
		".":                                        false,
	} {
		if got := beneathKubepods(path); got != want {
			t.Errorf("%s: %t, want %t", path, got, want)
		}
	}
}

func TestSnapshotCgroups(t *testing.T) {
	mount := t.TempDir()
	for _, dir := range []string{"kubepods/pod1", "kubepods/vanishing", "system.slice"} {
		if err := os.MkdirAll(filepath.Join(mount, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{"kubepods", "kubepods/pod1", "system.slice"} {
		for _, name := range memoryFiles {
			if err := os.WriteFile(filepath.Join(mount, dir, name), []byte("4096\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	got, err := snapshotCgroups(mount)
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]string{"memory.min": "4096", "memory.low": "4096", "memory.high": "4096", "memory.max": "4096"}
	want := map[string]map[string]string{"kubepods": values, "kubepods/pod1": values}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
