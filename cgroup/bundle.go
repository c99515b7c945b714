package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/json"

	"github.com/memqos/memqos/config"
)

// maxBundle is the largest config.json that is read, in bytes. One has 10 to 30
// KiB, of which the seccomp profile is most; the environment of a pod in a
// namespace with 2000 services adds 700. A container with more is known by its
// pod's status, a second later.
const maxBundle = 1 << 20

// Bundles finds out whose a container's cgroup is from its OCI bundle, without a
// runtime's socket and before the pod's status names the container.
//
// It holds nothing open, so that a runtime may come later or make its directory
// anew. It may be used by several goroutines.
type Bundles struct{ places []bundlePlace }

// bundlePlace is a path with <id> in it, cut there.
type bundlePlace struct{ root, file string }

// NewBundles returns the bundles at these paths, as config.DefaultBundlePaths gives them:
// absolute, with <id> as one of the elements but the last. None need exist. What
// is before <id> is trusted and may be reached through symbolic links; nothing
// from there on may.
func NewBundles(paths []string) (*Bundles, error) {
	b := &Bundles{}
	for _, p := range paths {
		root, file, ok := strings.Cut(p, "/<id>/")
		if !ok || strings.Contains(file, "<id>") || !path.IsAbs(root) || path.Clean(p) != p {
			return nil, fmt.Errorf("invalid bundle path %q: want an absolute path such as %q", p, config.DefaultBundlePaths()[0])
		}
		b.places = append(b.places, bundlePlace{root: root, file: file})
	}
	return b, nil
}

// Identity says whose a container's cgroup is.
type Identity struct {
	// Sandbox: it is the pod's pause container, not one of the pod's spec.
	Sandbox bool
	// PodUID is what stands in the name of the pod's cgroup: for a static pod the
	// hash of its configuration. See PodUID.
	PodUID         string
	Namespace, Pod string
	Container      string // empty for a sandbox
}

// BundleError says that a bundle's config.json is not to be believed: it is no
// plain file, too large, malformed, or contradicts the place of the cgroup.
type BundleError struct {
	Path string // of config.json
	// Field is a JSON path ("linux.cgroupsPath"), or "file", "size" or "JSON".
	Field string
	Value string // what was found, cut to 128 bytes
	Want  string
}

func (e *BundleError) Error() string {
	return fmt.Sprintf("bundle %s: %s is %q: want %s", e.Path, e.Field, e.Value, e.Want)
}

func bundleError(field, value, want string) error {
	return &BundleError{Field: field, Value: value[:min(len(value), 128)], Want: want}
}

// Identify tells whose a container's cgroup is: one directly beneath that of a pod
// as layout names it.
//
// The uid and the id were checked against the cgroup's place. The names are as the
// runtime has them, and valid: for the caller to compare with the pod of that uid.
// The error is fs.ErrNotExist if there is no bundle, and a *BundleError if it is
// not to be believed.
func (b *Bundles) Identify(layout Layout, cgroup string) (Identity, error) {
	id, ok := ContainerID(layout.Driver, path.Base(cgroup))
	if !ok {
		return Identity{}, fmt.Errorf("%q is not the cgroup of a container", cgroup)
	}
	var failed error
	for _, place := range b.places {
		data, err := place.read(id)
		if err == nil {
			var identity Identity
			identity, err = parseBundle(data, layout, cgroup)
			clear(data) // it has the container's environment in it, secrets included
			if err == nil {
				return identity, nil
			}
		}
		var lie *BundleError
		if errors.As(err, &lie) {
			lie.Path = path.Join(place.root, id, place.file)
			return Identity{}, err
		}
		if failed == nil && !errors.Is(err, fs.ErrNotExist) {
			failed = err
		}
	}
	if failed == nil {
		failed = &fs.PathError{Op: "find the bundle of", Path: cgroup, Err: fs.ErrNotExist}
	}
	return Identity{}, failed
}

// read reads the file of a container. It neither follows a link nor crosses a
// mount from the root on, waits for nobody, and reads at most maxBundle.
func (p bundlePlace) read(id string) ([]byte, error) {
	root, err := ignoringEINTR(func() (int, error) {
		return unix.Open(p.root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: p.root, Err: err}
	}
	defer unix.Close(root) //nolint:errcheck // O_PATH
	// Not openBeneath, which tries again on EAGAIN: that is what a leased file gives.
	fd, err := ignoringEINTR(func() (int, error) {
		return unix.Openat2(root, path.Join(id, p.file), &unix.OpenHow{
			// O_NONBLOCK: a FIFO would wait for a writer, a lease for its holder.
			Flags:   unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
		})
	})
	switch {
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.EXDEV), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV):
		return nil, bundleError("file", err.Error(), "a regular file, without links or mounts on the way")
	case err != nil:
		return nil, &fs.PathError{Op: "open", Path: path.Join(p.root, id, p.file), Err: err}
	}
	defer unix.Close(fd) //nolint:errcheck // read only
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, &fs.PathError{Op: "stat", Path: path.Join(p.root, id, p.file), Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, bundleError("file", fmt.Sprintf("mode %#o", st.Mode), "a regular file")
	}
	if st.Size > maxBundle {
		return nil, bundleError("size", fmt.Sprint(st.Size), fmt.Sprintf("at most %d bytes", maxBundle))
	}
	buf := make([]byte, st.Size+1)
	n := 0
	for n < len(buf) {
		m, err := ignoringEINTR(func() (int, error) { return unix.Read(fd, buf[n:]) })
		if err != nil {
			return nil, &fs.PathError{Op: "read", Path: path.Join(p.root, id, p.file), Err: err}
		}
		if m == 0 {
			return buf[:n], nil
		}
		n += m
	}
	return nil, bundleError("size", fmt.Sprintf("more than %d", st.Size), "a file that does not grow")
}

func ignoringEINTR(f func() (int, error)) (int, error) {
	for {
		n, err := f()
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// bundle is what is read of a config.json
// (https://github.com/opencontainers/runtime-spec/blob/main/config.md).
type bundle struct {
	Annotations struct {
		// containerd, pkg/cri/annotations.
		Type      string `json:"io.kubernetes.cri.container-type"`
		UID       string `json:"io.kubernetes.cri.sandbox-uid"`
		Namespace string `json:"io.kubernetes.cri.sandbox-namespace"`
		Pod       string `json:"io.kubernetes.cri.sandbox-name"`
		Container string `json:"io.kubernetes.cri.container-name"`
		// CRI-O: one of its own, and the kubelet's labels.
		CRIOType      string `json:"io.kubernetes.cri-o.ContainerType"`
		CRIOUID       string `json:"io.kubernetes.pod.uid"`
		CRIONamespace string `json:"io.kubernetes.pod.namespace"`
		CRIOPod       string `json:"io.kubernetes.pod.name"`
		CRIOContainer string `json:"io.kubernetes.container.name"`
	} `json:"annotations"`
	Linux struct {
		CgroupsPath string `json:"cgroupsPath"`
	} `json:"linux"`
}

// parseBundle tells from a config.json whose a container's cgroup is, and checks
// it against the cgroup's place. The error is a *BundleError without a Path.
func parseBundle(data []byte, layout Layout, cgroup string) (Identity, error) {
	// Case counts, as in crun and unlike in encoding/json, and so does a key that is
	// there twice. What is not in bundle is skipped over, at most 10000 levels deep,
	// with nothing allocated.
	var spec bundle
	repeated, err := json.UnmarshalStrict(data, &spec, json.DisallowDuplicateFields)
	if err != nil {
		return Identity{}, bundleError("JSON", err.Error(), "an OCI runtime configuration")
	}
	if len(repeated) > 0 {
		return Identity{}, bundleError("JSON", repeated[0].Error(), "each field once")
	}

	// The cgroup's name says whose annotations count. CRI-O passes on any annotation
	// of a pod, so there those of containerd may be a user's; its own it writes last.
	a := &spec.Annotations
	type field struct{ key, value string }
	kind, uid := field{"io.kubernetes.cri.container-type", a.Type}, field{"io.kubernetes.cri.sandbox-uid", a.UID}
	namespace, pod := field{"io.kubernetes.cri.sandbox-namespace", a.Namespace}, field{"io.kubernetes.cri.sandbox-name", a.Pod}
	container := field{"io.kubernetes.cri.container-name", a.Container}
	dir, name := path.Split(cgroup)
	dir = path.Clean(dir)
	if strings.HasPrefix(name, "crio-") {
		kind, uid = field{"io.kubernetes.cri-o.ContainerType", a.CRIOType}, field{"io.kubernetes.pod.uid", a.CRIOUID}
		namespace, pod = field{"io.kubernetes.pod.namespace", a.CRIONamespace}, field{"io.kubernetes.pod.name", a.CRIOPod}
		container = field{"io.kubernetes.container.name", a.CRIOContainer}
	}
	lie := func(f field, want string) (Identity, error) {
		return Identity{}, bundleError("annotations["+f.key+"]", f.value, want)
	}

	if want := layout.cgroupsPath(dir, name); spec.Linux.CgroupsPath != want {
		return Identity{}, bundleError("linux.cgroupsPath", spec.Linux.CgroupsPath, want)
	}
	if !layout.isPodOf(dir, uid.value) {
		return lie(uid, "that of "+dir)
	}
	if !isLabel(namespace.value) {
		return lie(namespace, "a DNS label")
	}
	if len(pod.value) > validation.DNS1123SubdomainMaxLength || len(validation.IsDNS1123Subdomain(pod.value)) > 0 {
		return lie(pod, "a DNS subdomain")
	}
	identity := Identity{PodUID: uid.value, Namespace: namespace.value, Pod: pod.value}
	switch kind.value {
	case "sandbox":
		identity.Sandbox = true // CRI-O names its container "POD"
	case "container":
		if !isLabel(container.value) {
			return lie(container, "a DNS label")
		}
		identity.Container = container.value
	default:
		return lie(kind, "sandbox or container")
	}
	return identity, nil
}

// isLabel reports whether s is a DNS label. The length comes first: the validation
// goes on to match a regular expression with all of s.
func isLabel(s string) bool {
	return len(s) <= validation.DNS1123LabelMaxLength && len(validation.IsDNS1123Label(s)) == 0
}

// cgroupsPath returns what a runtime configuration says of the cgroup called name
// in dir. For systemd it is slice:prefix:name, of which runc and crun make the name
// of a scope.
func (l Layout) cgroupsPath(dir, name string) string {
	cgroup := path.Join(dir, name)
	id, ok := ContainerID(l.Driver, name)
	if !ok || l.Driver == config.Cgroupfs {
		return "/" + cgroup
	}
	prefix := strings.TrimSuffix(name, "-"+id+".scope")
	return path.Base(dir) + ":" + prefix + ":" + id
}

// isPodOf reports whether cgroup is that of the pod with this uid, in any class.
func (l Layout) isPodOf(cgroup, uid string) bool {
	for _, class := range []corev1.PodQOSClass{corev1.PodQOSGuaranteed, corev1.PodQOSBurstable, corev1.PodQOSBestEffort} {
		if pod, err := l.Pod(class, uid); err == nil && pod == cgroup {
			return true
		}
	}
	return false
}
