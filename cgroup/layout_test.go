package cgroup

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/memqos/memqos/config"
)

const (
	uid = "6a1f3b52-7a3c-4a2c-9a55-0d3d0d0d0d0d"
	id  = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
)

// The names that kubelets gave on real nodes.
func TestLayout(t *testing.T) {
	for _, tc := range []struct {
		driver                                           config.CgroupDriver
		cgroupRoot                                       string
		root, burstable, guaranteedPod, burstablePod, be string
	}{
		{
			config.Systemd, "/", "kubepods.slice", "kubepods.slice/kubepods-burstable.slice",
			"kubepods.slice/kubepods-pod6a1f3b52_7a3c_4a2c_9a55_0d3d0d0d0d0d.slice",
			"kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod6a1f3b52_7a3c_4a2c_9a55_0d3d0d0d0d0d.slice",
			"kubepods.slice/kubepods-besteffort.slice",
		},
		{
			config.Cgroupfs, "/", "kubepods", "kubepods/burstable",
			"kubepods/pod" + uid, "kubepods/burstable/pod" + uid, "kubepods/besteffort",
		},
		{
			config.Systemd, "/kubelet", "kubelet.slice/kubelet-kubepods.slice", "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice",
			"kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod6a1f3b52_7a3c_4a2c_9a55_0d3d0d0d0d0d.slice",
			"kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod6a1f3b52_7a3c_4a2c_9a55_0d3d0d0d0d0d.slice",
			"kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice",
		},
		{
			config.Cgroupfs, "/kubelet", "kubelet/kubepods", "kubelet/kubepods/burstable",
			"kubelet/kubepods/pod" + uid, "kubelet/kubepods/burstable/pod" + uid, "kubelet/kubepods/besteffort",
		},
		{
			config.Systemd, "/my-own", "my_own.slice/my_own-kubepods.slice", "my_own.slice/my_own-kubepods.slice/my_own-kubepods-burstable.slice",
			"my_own.slice/my_own-kubepods.slice/my_own-kubepods-pod6a1f3b52_7a3c_4a2c_9a55_0d3d0d0d0d0d.slice",
			"my_own.slice/my_own-kubepods.slice/my_own-kubepods-burstable.slice/my_own-kubepods-burstable-pod6a1f3b52_7a3c_4a2c_9a55_0d3d0d0d0d0d.slice",
			"my_own.slice/my_own-kubepods.slice/my_own-kubepods-besteffort.slice",
		},
	} {
		t.Run(string(tc.driver)+" "+tc.cgroupRoot, func(t *testing.T) {
			l := NewLayout(tc.driver, tc.cgroupRoot)
			guaranteed, err := l.Pod(corev1.PodQOSGuaranteed, uid)
			if err != nil {
				t.Fatal(err)
			}
			burstable, err := l.Pod(corev1.PodQOSBurstable, uid)
			if err != nil {
				t.Fatal(err)
			}
			for _, x := range [][2]string{
				{l.Root, tc.root}, {l.QOS(corev1.PodQOSGuaranteed), tc.root}, {l.QOS(corev1.PodQOSBurstable), tc.burstable},
				{l.QOS(corev1.PodQOSBestEffort), tc.be}, {guaranteed, tc.guaranteedPod}, {burstable, tc.burstablePod},
			} {
				if x[0] != x[1] {
					t.Errorf("got  %s\nwant %s", x[0], x[1])
				}
			}
		})
	}
}

func TestLayoutPodRefuses(t *testing.T) {
	for _, bad := range []string{"", "../../system.slice", "a/b", ".", "a.b", "a\x00", "a b", strings.Repeat("a", 129)} {
		if got, err := NewLayout(config.Cgroupfs, "/").Pod(corev1.PodQOSBurstable, bad); err == nil {
			t.Errorf("uid %q: got %s, want an error", bad, got)
		}
	}
	if got, err := NewLayout(config.Cgroupfs, "/").Pod("Other", uid); err == nil {
		t.Errorf("class Other: got %s, want an error", got)
	}
}

func TestContainerID(t *testing.T) {
	for _, tc := range []struct {
		driver config.CgroupDriver
		name   string
		ok     bool
	}{
		{config.Systemd, "cri-containerd-" + id + ".scope", true},
		{config.Systemd, "crio-" + id + ".scope", true},
		{config.Systemd, "docker-" + id + ".scope", true},
		{config.Systemd, "crio-conmon-" + id + ".scope", false},
		{config.Systemd, "crio-" + id, false}, // what CRI-O makes for a sandbox without a container
		{config.Systemd, "libpod-" + id + ".scope", false},
		{config.Systemd, "cri-containerd-" + id + ".slice", false},
		{config.Systemd, "cri-containerd-" + id[1:] + ".scope", false},
		{config.Systemd, "-" + id + ".scope", false},
		{config.Systemd, id, false},
		{config.Systemd, "", false},
		{config.Cgroupfs, id, true},
		{config.Cgroupfs, "crio-" + id, true},
		{config.Cgroupfs, "crio-conmon-" + id, false},
		{config.Cgroupfs, strings.ToUpper(id), false},
		{config.Cgroupfs, "container", false},
	} {
		got, ok := ContainerID(tc.driver, tc.name)
		if ok != tc.ok || (ok && got != id) {
			t.Errorf("ContainerID(%s, %q) = %q, %v; want ok %v", tc.driver, tc.name, got, ok, tc.ok)
		}
	}
}

// The name that a Layout gives to a container is the one that ContainerID reads.
func TestContainerRoundTrip(t *testing.T) {
	for _, driver := range []config.CgroupDriver{config.Systemd, config.Cgroupfs} {
		for _, runtime := range []string{"containerd", "cri-o", "docker"} {
			l := NewLayout(driver, "/")
			name := strings.TrimPrefix(l.Container(l.Root, runtime+"://"+id), l.Root+"/")
			if got, ok := ContainerID(driver, name); !ok || got != id {
				t.Errorf("%s %s: %q is read as %q, %v", driver, runtime, name, got, ok)
			}
		}
	}
}

func TestContainerOfUnknownRuntime(t *testing.T) {
	for _, bad := range []string{"", id, "frakti://" + id, "containerd://", "containerd://../" + id} {
		if got := NewLayout(config.Systemd, "/").Container("kubepods.slice", bad); got != "" {
			t.Errorf("%q: got %s", bad, got)
		}
	}
}

func FuzzContainerID(f *testing.F) {
	f.Add("cri-containerd-" + id + ".scope")
	f.Add("crio-conmon-" + id + ".scope")
	f.Add(id)
	f.Fuzz(func(t *testing.T, name string) {
		for _, driver := range []config.CgroupDriver{config.Systemd, config.Cgroupfs} {
			if got, ok := ContainerID(driver, name); ok && (!validContainerID(got) || strings.Contains(name, "conmon")) {
				t.Fatalf("ContainerID(%s, %q) = %q", driver, name, got)
			}
		}
	})
}
