package testnode

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestRuntimeFiles(t *testing.T) {
	for _, test := range []struct {
		cri   string
		files []string
		// config must hold these lines.
		config string
		lines  []string
	}{
		{
			cri:    "containerd",
			files:  []string{"/etc/containerd/config.toml", "/etc/systemd/system/testnode-images.service"},
			config: "/etc/containerd/config.toml",
			lines:  []string{`BinaryName = "/usr/bin/crun"`, "SystemdCgroup = false"},
		},
		{
			cri: "cri-o",
			files: []string{
				"/etc/containers/policy.json", "/etc/containers/storage.conf", "/etc/crio/crio.conf",
				"/etc/systemd/system/crio.service", "/etc/systemd/system/testnode-images.service",
			},
			config: "/etc/crio/crio.conf",
			lines:  []string{`listen = "/run/crio/crio.sock"`, `cgroup_manager = "cgroupfs"`, `runtime_path = "/usr/bin/crun"`, `monitor_cgroup = "pod"`},
		},
	} {
		o, err := Options{CRI: test.cri, Runtime: "crun", CgroupDriver: "cgroupfs"}.withDefaults()
		if err != nil {
			t.Fatal(err)
		}
		files := runtimeFiles(o)
		if diff := cmp.Diff(test.files, slices.Sorted(maps.Keys(files))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.cri, diff)
		}
		for _, line := range test.lines {
			if !strings.Contains(files[test.config], line+"\n") {
				t.Errorf("%s: %s has no line %s:\n%s", test.cri, test.config, line, files[test.config])
			}
		}
		unit := files["/etc/systemd/system/testnode-images.service"]
		if n := strings.Count(unit, "/images.tar"); n == 0 {
			t.Errorf("%s: no image is imported:\n%s", test.cri, unit)
		}
	}
}
