package main

import (
	"encoding/json"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

const cgroupMount = "/sys/fs/cgroup"

var memoryFiles = []string{"memory.min", "memory.low", "memory.high", "memory.max"}

func getCgroups(w http.ResponseWriter, _ *http.Request) {
	snapshot, err := snapshotCgroups(cgroupMount)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(snapshot) // a lost peer has no use for it
}

// snapshotCgroups maps every cgroup at and beneath a kubepods, whatever the
// driver and however deep it is nested, to the contents of its memory files.
// A cgroup that goes away meanwhile is left out.
func snapshotCgroups(mount string) (map[string]map[string]string, error) {
	snapshot := make(map[string]map[string]string)
	err := filepath.WalkDir(mount, func(path string, entry fs.DirEntry, err error) error {
		if gone(err) {
			return nil
		}
		if err != nil || !entry.IsDir() {
			return err
		}
		relative, err := filepath.Rel(mount, path)
		if err != nil {
			return err
		}
		if !beneathKubepods(relative) {
			return nil
		}
		values := make(map[string]string)
		for _, name := range memoryFiles {
			content, err := os.ReadFile(filepath.Join(path, name))
			if gone(err) {
				return nil
			}
			if err != nil {
				return err
			}
			values[name] = strings.TrimSpace(string(content))
		}
		snapshot[relative] = values
		return nil
	})
	return snapshot, err
}

// A file of a removed cgroup is ENOENT on open and ENODEV on read.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV)
}

// beneathKubepods knows "kubepods", "kubepods.slice", and the slice of a nested
// cgroup root, "kubelet-kubepods.slice".
func beneathKubepods(path string) bool {
	for _, name := range strings.Split(path, "/") {
		name = strings.TrimSuffix(name, ".slice")
		if name == "kubepods" || strings.HasSuffix(name, "-kubepods") {
			return true
		}
	}
	return false
}

// makeCgroupRoot makes the cgroups that a kubelet with --cgroup-root expects to
// exist, as kind does for /kubelet: the cgroup itself, and its slice for the
// systemd driver, with every controller of the root enabled along the way.
func makeCgroupRoot(mount, root string) error {
	available, err := os.ReadFile(filepath.Join(mount, "cgroup.controllers"))
	if err != nil {
		return err
	}
	var enable string
	for _, controller := range strings.Fields(string(available)) {
		enable += " +" + controller
	}
	root = strings.Trim(root, "/")
	for _, dir := range []string{root, root + ".slice"} {
		path := mount
		for _, name := range strings.Split(dir, "/") {
			if err := writeInPlace(filepath.Join(path, "cgroup.subtree_control"), strings.NewReader(enable)); err != nil {
				return err
			}
			path = filepath.Join(path, name)
			if err := os.Mkdir(path, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
		}
		if err := writeInPlace(filepath.Join(path, "cgroup.subtree_control"), strings.NewReader(enable)); err != nil {
			return err
		}
	}
	return nil
}
