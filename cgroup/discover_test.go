package cgroup

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/memqos/memqos/cgroup/cgrouptest"
	"github.com/memqos/memqos/config"
)

func TestFindLayout(t *testing.T) {
	for _, tc := range []struct {
		name   string
		tree   string
		root   string
		driver config.CgroupDriver
		empty  string // cgroup without processes
		want   string
		reason string
	}{
		{name: "systemd", tree: "kubepods.slice\nsystem.slice\nuser.slice", want: "kubepods.slice"},
		{name: "cgroupfs", tree: "kubepods\nsystem.slice", want: "kubepods"},
		{name: "kind systemd", tree: "kubelet.slice/kubelet-kubepods.slice\nsystem.slice", want: "kubelet.slice/kubelet-kubepods.slice"},
		{name: "kind cgroupfs", tree: "kubelet/kubepods\ninit.scope", want: "kubelet/kubepods"},
		{name: "other root", tree: "my_own.slice/my_own-kubepods.slice", want: "my_own.slice/my_own-kubepods.slice"},
		{name: "none", tree: "system.slice", reason: ReasonNoKubepods},
		{name: "configured root not there", tree: "kubepods.slice", root: "/kubelet", reason: ReasonNoKubepods},
		{name: "configured root", tree: "kubepods.slice\nkubelet.slice/kubelet-kubepods.slice", root: "/kubelet", want: "kubelet.slice/kubelet-kubepods.slice"},
		{name: "driver changed", tree: "kubepods.slice\nkubepods", empty: "kubepods", want: "kubepods.slice"},
		{name: "two in use", tree: "kubepods.slice\nkubepods", reason: ReasonAmbiguous},
		{name: "two in use, configured", tree: "kubepods.slice\nkubepods", driver: config.Cgroupfs, want: "kubepods"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := cgrouptest.Make(t, tc.tree)
			if tc.empty != "" {
				cgrouptest.Write(t, filepath.Join(dir, tc.empty, "cgroup.events"), "populated 0\nfrozen 0")
			}
			got, err := findLayout(dir, tc.root, tc.driver)
			if got.Root != tc.want || reason(err) != tc.reason {
				t.Errorf("got %q, %v; want %q, reason %q", got.Root, err, tc.want, tc.reason)
			}
		})
	}
}

func TestFindLayoutIgnoresLinks(t *testing.T) {
	dir := cgrouptest.Make(t, "elsewhere")
	if err := os.Symlink("elsewhere", filepath.Join(dir, "kubepods")); err != nil {
		t.Fatal(err)
	}
	if got, err := findLayout(dir, "", ""); reason(err) != ReasonNoKubepods {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestDiscoverUnsupported(t *testing.T) {
	if _, err := Discover(cgrouptest.Make(t, "kubepods"), "", ""); reason(err) != ReasonCgroupV1 {
		t.Errorf("ordinary directory: got %v", err)
	}
	if _, err := Discover("/nonexistent", "", ""); reason(err) != ReasonInaccessible {
		t.Errorf("nothing there: got %v", err)
	}
}

func reason(err error) string {
	var u *UnsupportedError
	if errors.As(err, &u) {
		return u.Reason
	}
	return ""
}

func TestCheckKernel(t *testing.T) {
	for release, ok := range map[string]bool{
		"5.8.0": true, "5.10.0-8-amd64": true, "6.1.192": true, "7.2.3+deb14-cloud-amd64": true, "10.0": true,
		"5.7.19": false, "4.19.0-26": false, "": false, "generic": false,
	} {
		if err := checkKernel(release); (err == nil) != ok {
			t.Errorf("checkKernel(%q) = %v, want ok %v", release, err, ok)
		}
	}
}

func TestParseMountinfo(t *testing.T) {
	got := parseMountinfo(`22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
30 22 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot
31 22 0:26 /../../.. /host/sys/fs/cgroup\040root rw - cgroup2 cgroup rw
32 22 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
garbage
33 22 0:28 / /x rw - 
`)
	if diff := cmp.Diff([]string{"/sys/fs/cgroup", "/host/sys/fs/cgroup root"}, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}
