package cgroup

import (
	"fmt"
	"path"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/memqos/memqos/config"
)

// kubepods is the kubelet's name for the cgroup of all pods
// (pkg/kubelet/cm.defaultNodeAllocatableCgroupName).
const kubepods = "kubepods"

// Layout gives the kubelet's names for the cgroups of a node, as paths below the
// cgroup2 mount without a leading slash.
type Layout struct {
	Driver config.CgroupDriver
	// Root is kubepods itself: "kubepods.slice", "kubepods", or on kind
	// "kubelet.slice/kubelet-kubepods.slice".
	Root string
}

// NewLayout returns the layout of a kubelet with this driver and cgroupRoot.
func NewLayout(driver config.CgroupDriver, cgroupRoot string) Layout {
	var names []string
	for name := range strings.SplitSeq(cgroupRoot, "/") {
		if name != "" {
			names = append(names, name)
		}
	}
	names = append(names, kubepods)
	if driver == config.Cgroupfs {
		return Layout{Driver: driver, Root: path.Join(names...)}
	}
	// systemd: a slice's name repeats that of its parents, joined by dashes; a
	// dash of its own is escaped (the kubelet writes an underscore).
	var slice, dir string
	for _, name := range names {
		if slice != "" {
			slice += "-"
		}
		slice += escape(name)
		dir = path.Join(dir, slice+".slice")
	}
	return Layout{Driver: driver, Root: dir}
}

func escape(name string) string { return strings.ReplaceAll(name, "-", "_") }

// child returns the path of the cgroup called name directly beneath one of the
// kubelet's own.
func (l Layout) child(parent, name string) string {
	if l.Driver == config.Cgroupfs {
		return path.Join(parent, name)
	}
	return path.Join(parent, strings.TrimSuffix(path.Base(parent), ".slice")+"-"+escape(name)+".slice")
}

// QOS returns the cgroup of a QoS class. That of Guaranteed is kubepods itself.
func (l Layout) QOS(class corev1.PodQOSClass) string {
	if class == corev1.PodQOSGuaranteed {
		return l.Root
	}
	return l.child(l.Root, strings.ToLower(string(class)))
}

// Pod returns the cgroup of a pod. It refuses a class and a uid that the kubelet
// could not have made a cgroup of, such as one with a slash in it.
func (l Layout) Pod(class corev1.PodQOSClass, uid string) (string, error) {
	switch class {
	case corev1.PodQOSGuaranteed, corev1.PodQOSBurstable, corev1.PodQOSBestEffort:
	default:
		return "", fmt.Errorf("invalid QoS class %q: want Guaranteed, Burstable or BestEffort", class)
	}
	if !validUID(uid) {
		return "", fmt.Errorf("invalid pod uid %q: want letters, digits and dashes", uid)
	}
	return l.child(l.QOS(class), "pod"+uid), nil
}

// IsAbovePods reports whether a cgroup is kubepods or that of a QoS class.
func (l Layout) IsAbovePods(cgroup string) bool {
	return cgroup == l.Root || cgroup == l.QOS(corev1.PodQOSBurstable) || cgroup == l.QOS(corev1.PodQOSBestEffort)
}

// IsPod reports whether name is that of a pod's cgroup directly beneath that of
// its QoS class.
func (l Layout) IsPod(class corev1.PodQOSClass, name string) bool {
	prefix := strings.TrimSuffix(path.Base(l.child(l.QOS(class), "pod")), ".slice")
	return strings.HasPrefix(name, prefix)
}

// Container returns the cgroup that a runtime makes for a container beneath that
// of its pod. containerID is as in a pod's status ("containerd://0123..."). It is
// empty for what no known runtime could have made.
func (l Layout) Container(pod, containerID string) string {
	runtime, id, _ := strings.Cut(containerID, "://")
	prefix, known := scopePrefixes[runtime]
	switch {
	case !known || !validContainerID(id):
		return ""
	case l.Driver == config.Systemd:
		return path.Join(pod, prefix+"-"+id+".scope")
	case runtime == "cri-o":
		return path.Join(pod, prefix+"-"+id)
	}
	return path.Join(pod, id)
}

// scopePrefixes are what the runtimes put before the id in the name of a
// container's scope, by the runtime's name in a containerID.
var scopePrefixes = map[string]string{
	"containerd": "cri-containerd",
	"cri-o":      "crio",
	"docker":     "docker",
}

// ContainerID tells the container id from the name of a cgroup directly beneath
// that of a pod. ok is false for what is not a container's, such as the scope of
// conmon, CRI-O's monitor. A sandbox's name looks like a container's.
func ContainerID(driver config.CgroupDriver, name string) (id string, ok bool) {
	if driver == config.Cgroupfs {
		id = strings.TrimPrefix(name, "crio-")
		return id, validContainerID(id)
	}
	name, ok = strings.CutSuffix(name, ".scope")
	i := strings.LastIndexByte(name, '-')
	if !ok || i < 0 {
		return "", false
	}
	id = name[i+1:]
	for _, prefix := range scopePrefixes {
		if name[:i] == prefix {
			return id, validContainerID(id)
		}
	}
	return "", false
}

// validContainerID reports whether id is 64 hexadecimal digits, as every CRI
// runtime makes them.
func validContainerID(id string) bool {
	if len(id) != 64 {
		return false
	}
	for _, c := range []byte(id) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// validUID reports whether uid can be part of a cgroup's name. The API server's
// uids are RFC 4122, the kubelet's for static pods 32 hexadecimal digits, and a
// static pod's manifest may set any.
func validUID(uid string) bool {
	if uid == "" || len(uid) > 128 {
		return false
	}
	for _, c := range []byte(uid) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && c != '-' {
			return false
		}
	}
	return true
}
