package testnode

import (
	"fmt"
	"io"
)

// Options say which node to start. The zero value is a 1.27.4 node on Debian
// bookworm with the systemd driver.
type Options struct {
	// Kubernetes is the version of the kubelet, and of the API server unless
	// APIServer names another. A module hack/kubernetes/vX.Y.Z must exist.
	// Default: "1.27.4".
	Kubernetes string
	APIServer  string

	// Debian is the release that the root file system comes from, and the kernel
	// unless Kernel names another. Defaults: "bookworm" (systemd 252, kernel 6.1).
	Debian string
	Kernel string

	// CgroupDriver is the kubelet's and the CRI runtime's: "systemd" (the default)
	// or "cgroupfs".
	CgroupDriver string

	// CgroupRoot is the kubelet's --cgroup-root, such as kind's "/kubelet"; the
	// cgroup is made before the kubelet starts. Default: "/".
	CgroupRoot string

	// CRI is what the kubelet speaks to, "containerd" (the default) or "cri-o".
	CRI string

	// Runtime is the OCI runtime, "runc" (the default) or "crun".
	Runtime string

	// FeatureGates are the kubelet's.
	FeatureGates map[string]bool

	// KubeletConfig is merged over the KubeletConfiguration, field by field.
	KubeletConfig map[string]any

	// StaticPods are manifests for the kubelet's staticPodPath, by file name.
	StaticPods map[string][]byte

	// MemoryMiB and CPUs are the virtual machine's. Defaults: 3072, and 1: of some
	// twenty starts with two emulated processors one ended in a soft lockup of both
	// (bookworm, QEMU 7.2), and newer kernels get along with them even less.
	MemoryMiB, CPUs int

	// Controllers runs the controller manager and the scheduler of the API server's
	// version too, and service accounts as in a real cluster: DaemonSets have pods,
	// and pods have tokens with which they reach the API server.
	Controllers bool

	// Audit makes the API server write an audit log (level Metadata); it is
	// among what CollectLogs collects.
	Audit bool

	// Log gets the progress, one line a stage. Default: none.
	Log io.Writer
}

func (o Options) withDefaults() (Options, error) {
	o.Kubernetes = orDefault(o.Kubernetes, "1.27.4")
	o.APIServer = orDefault(o.APIServer, o.Kubernetes)
	o.Debian = orDefault(o.Debian, "bookworm")
	o.Kernel = orDefault(o.Kernel, o.Debian)
	o.CgroupDriver = orDefault(o.CgroupDriver, "systemd")
	o.CgroupRoot = orDefault(o.CgroupRoot, "/")
	o.CRI = orDefault(o.CRI, "containerd")
	o.Runtime = orDefault(o.Runtime, "runc")
	o.MemoryMiB = orDefault(o.MemoryMiB, 3072)
	o.CPUs = orDefault(o.CPUs, 1)
	if o.CgroupDriver != "systemd" && o.CgroupDriver != "cgroupfs" {
		return o, fmt.Errorf("cgroup driver %q: want systemd or cgroupfs", o.CgroupDriver)
	}
	if o.CRI != "containerd" && o.CRI != "cri-o" {
		return o, fmt.Errorf("CRI runtime %q: want containerd or cri-o", o.CRI)
	}
	if o.Runtime != "runc" && o.Runtime != "crun" {
		return o, fmt.Errorf("runtime %q: want runc or crun", o.Runtime)
	}
	for _, version := range []string{o.Kubernetes, o.APIServer} {
		if minor(version) == 0 {
			return o, fmt.Errorf("kubernetes version %q: want MAJOR.MINOR.PATCH", version)
		}
	}
	return o, nil
}

func orDefault[T comparable](value, otherwise T) T {
	var zero T
	if value == zero {
		return otherwise
	}
	return value
}
