package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/cgroups/v3"
	"golang.org/x/sys/unix"

	"github.com/memqos/memqos/config"
	"github.com/memqos/memqos/memory"
)

// The reasons for which a node cannot be served, as labels and in logs.
const (
	ReasonCgroupV1     = "CgroupV1"           // cgroup v1, alone or with a v2 hierarchy beside it
	ReasonNoCgroup2    = "NoCgroup2Mount"     // no cgroup2 mount is seen
	ReasonKernel       = "KernelTooOld"       // before 5.8
	ReasonNoMemory     = "NoMemoryController" // the memory controller is not on for kubepods
	ReasonNoKubepods   = "KubepodsNotFound"   // no kubelet has run here yet, or under another cgroupRoot
	ReasonAmbiguous    = "KubepodsAmbiguous"  // several trees hold pods
	ReasonInaccessible = "Inaccessible"       // the mount cannot be read
)

// UnsupportedError says why a node cannot be served, now or ever. It is a state
// to report, not a failure: kubepods may appear a moment later.
type UnsupportedError struct {
	Reason  string
	Message string
}

func (e *UnsupportedError) Error() string { return e.Reason + ": " + e.Message }

func unsupported(reason, format string, args ...any) error {
	return &UnsupportedError{Reason: reason, Message: fmt.Sprintf(format, args...)}
}

// oldestKernel is the first that Kubernetes supports with cgroup v2. openat2(2),
// on which the safety of every access rests, came in 5.6.
var oldestKernel = [2]int{5, 8}

// Discover finds the kubepods tree.
//
// dir is where the host's cgroup2 hierarchy is mounted; empty, the mounts of
// this process are searched. root and driver are the kubelet's cgroupRoot and
// cgroupDriver; empty, they are told from the names in the tree. The error is an
// UnsupportedError.
func Discover(dir, root string, driver config.CgroupDriver) (*Tree, error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return nil, unsupported(ReasonKernel, "uname: %v", err)
	}
	if err := checkKernel(unix.ByteSliceToString(uts.Release[:])); err != nil {
		return nil, err
	}
	mounts := []string{dir}
	if dir == "" {
		var err error
		if mounts, err = cgroup2Mounts(); err != nil {
			return nil, unsupported(ReasonInaccessible, "%v", err)
		}
	}
	if len(mounts) == 0 {
		return nil, noCgroup2()
	}
	var first error
	for _, mount := range mounts {
		t, err := discoverAt(mount, root, driver)
		if err == nil {
			return t, nil
		}
		if first == nil {
			first = err
		}
	}
	return nil, first
}

// discoverAt finds the tree in the hierarchy at one directory.
func discoverAt(mount, root string, driver config.CgroupDriver) (*Tree, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(mount, &st); err != nil {
		return nil, unsupported(ReasonInaccessible, "statfs %s: %v", mount, err)
	}
	if st.Type != unix.CGROUP2_SUPER_MAGIC {
		return nil, unsupported(ReasonCgroupV1, "%s is not a cgroup2 mount; this node has cgroup v1, or --cgroup-root names another directory", mount)
	}
	layout, err := findLayout(mount, root, driver)
	if err != nil {
		return nil, err
	}
	t, err := Open(mount, layout)
	if err != nil {
		return nil, unsupported(ReasonInaccessible, "%v", err)
	}
	if _, err := t.Value(layout.Root, memory.Min); err != nil {
		return nil, unsupported(ReasonNoMemory, "the memory controller is not on in %s (hybrid cgroup v1, or cgroup_disable=memory): %v", t.dir(""), err)
	}
	return t, nil
}

func checkKernel(release string) error {
	var major, minor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		return unsupported(ReasonKernel, "cannot read kernel release %q", release)
	}
	if slices.Compare([]int{major, minor}, oldestKernel[:]) < 0 {
		return unsupported(ReasonKernel, "kernel %s is older than %d.%d", release, oldestKernel[0], oldestKernel[1])
	}
	return nil
}

func noCgroup2() error {
	switch cgroups.Mode() {
	case cgroups.Legacy, cgroups.Hybrid:
		return unsupported(ReasonCgroupV1, "this node has cgroup v1; MemoryQoS needs cgroup v2")
	}
	return unsupported(ReasonNoCgroup2, "no cgroup2 file system is mounted here; mount the host's, for example at /host/sys/fs/cgroup")
}

// cgroup2Mounts lists the mount points of cgroup2 file systems in this mount
// namespace. A container sees its own cgroup mounted too, with no kubepods in it.
func cgroup2Mounts() ([]string, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	return parseMountinfo(string(data)), nil
}

// parseMountinfo reads proc_pid_mountinfo(5):
//
//	36 35 98:0 /root /mnt rw,noatime master:1 - cgroup2 cgroup2 rw,nsdelegate
func parseMountinfo(data string) []string {
	var mounts []string
	for line := range strings.Lines(data) {
		before, after, ok := strings.Cut(line, " - ")
		fields := strings.Fields(before)
		if ok && len(fields) >= 5 && strings.HasPrefix(after, "cgroup2 ") {
			mounts = append(mounts, unescapeMount(fields[4]))
		}
	}
	return mounts
}

// MountOptions are the options of the cgroup2 file system mounted at a directory, such
// as nsdelegate and memory_recursiveprot; nil where that cannot be told.
func MountOptions(mount string) []string {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	return parseMountOptions(string(data), mount)
}

// parseMountOptions takes the options of the super block, the last field. Where mounts
// lie over one another the last counts.
func parseMountOptions(data, mount string) (options []string) {
	for line := range strings.Lines(data) {
		before, after, ok := strings.Cut(line, " - ")
		fields, super := strings.Fields(before), strings.Fields(after)
		if ok && len(fields) >= 5 && len(super) >= 3 && super[0] == "cgroup2" && unescapeMount(fields[4]) == mount {
			options = strings.Split(super[2], ",")
		}
	}
	return options
}

// unescapeMount undoes the octal escapes of mountinfo (\040 for a space).
func unescapeMount(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// findLayout looks for kubepods in a hierarchy. A driver that was changed leaves
// its old tree behind, empty: the one that holds processes is meant.
func findLayout(mount, root string, driver config.CgroupDriver) (Layout, error) {
	drivers := []config.CgroupDriver{config.Systemd, config.Cgroupfs}
	if driver != "" {
		drivers = []config.CgroupDriver{driver}
	}
	var found []Layout
	for _, d := range drivers {
		roots := []string{root}
		if root == "" {
			var err error
			if roots, err = candidateRoots(mount, d); err != nil {
				return Layout{}, unsupported(ReasonInaccessible, "%v", err)
			}
		}
		for _, r := range roots {
			if l := NewLayout(d, r); isDir(path.Join(mount, l.Root)) {
				found = append(found, l)
			}
		}
	}
	if len(found) > 1 {
		if inUse := slices.DeleteFunc(slices.Clone(found), func(l Layout) bool { return !populated(path.Join(mount, l.Root)) }); len(inUse) > 0 {
			found = inUse
		}
	}
	switch len(found) {
	case 0:
		return Layout{}, unsupported(ReasonNoKubepods, "no kubepods cgroup beneath %s (cgroupRoot %q, cgroupDriver %q; empty means any)", mount, root, driver)
	case 1:
		return found[0], nil
	}
	var names []string
	for _, l := range found {
		names = append(names, l.Root)
	}
	return Layout{}, unsupported(ReasonAmbiguous, "several kubepods cgroups beneath %s: %s; set cgroupRoot and cgroupDriver to the kubelet's", mount, strings.Join(names, ", "))
}

// candidateRoots lists the cgroupRoots that kubepods may be under: "/" and each
// top-level cgroup of the driver's kind.
func candidateRoots(mount string, driver config.CgroupDriver) ([]string, error) {
	entries, err := os.ReadDir(mount)
	if err != nil {
		return nil, err
	}
	roots := []string{"/"}
	for _, e := range entries {
		name, isSlice := strings.CutSuffix(e.Name(), ".slice")
		if !e.IsDir() || isSlice != (driver == config.Systemd) || name == kubepods {
			continue
		}
		roots = append(roots, "/"+name)
	}
	return roots, nil
}

func isDir(name string) bool {
	info, err := os.Lstat(name)
	return err == nil && info.IsDir()
}

// populated reports whether a cgroup or one beneath it holds a process.
func populated(dir string) bool {
	data, err := os.ReadFile(filepath.Join(dir, "cgroup.events"))
	return err == nil && strings.Contains(string(data), "populated 1")
}

// IsGone reports whether an error says that a cgroup, or a file of it, is not
// there or no longer.
func IsGone(err error) bool { return errors.Is(err, fs.ErrNotExist) }

// BootID is the kernel's id of this boot: inode numbers of cgroups are unique
// within one.
func BootID() (string, error) {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read the boot id: %w", err)
	}
	return strings.TrimSpace(string(data)), nil
}
