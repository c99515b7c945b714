package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/memqos/memqos/memory"
)

// Tree is the kubepods tree of a node. It holds kubepods open, so what it reads
// and writes is beneath that very cgroup, whatever is mounted or linked where.
//
// Paths are below the cgroup2 mount, as a Layout gives them. A cgroup that is
// not there, or no longer, is an error that is fs.ErrNotExist.
type Tree struct {
	Layout Layout
	// Mount is the directory at which the cgroup2 hierarchy is seen.
	Mount string

	kubepods *os.File
	// fixture: an ordinary directory for tests, where a write must truncate.
	fixture bool
}

// Open opens the tree of a layout in the cgroup2 hierarchy mounted at mount.
func Open(mount string, layout Layout) (*Tree, error) {
	t, err := OpenFixture(mount, layout)
	if err != nil {
		return nil, err
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(t.kubepods.Fd()), &st); err != nil {
		return nil, fmt.Errorf("statfs %s: %w", t.dir(""), err)
	}
	if st.Type != unix.CGROUP2_SUPER_MAGIC {
		return nil, fmt.Errorf("%s is not on a cgroup2 file system (type %#x)", t.dir(""), st.Type)
	}
	t.fixture = false
	return t, nil
}

// OpenFixture opens an ordinary directory that is laid out as a cgroup tree. It
// is for tests; the kernel refuses and changes nothing there.
func OpenFixture(mount string, layout Layout) (*Tree, error) {
	dir := path.Join(mount, layout.Root)
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	return &Tree{Layout: layout, Mount: mount, kubepods: os.NewFile(uintptr(fd), dir), fixture: true}, nil
}

// dir is the path of a cgroup for messages.
func (t *Tree) dir(cgroup string) string {
	if cgroup == "" {
		cgroup = t.Layout.Root
	}
	return path.Join(t.Mount, cgroup)
}

// open opens the cgroup, or the file of it, beneath kubepods and nowhere else.
func (t *Tree) open(cgroup, file string, flags int) (int, error) {
	name := path.Join(t.dir(cgroup), file)
	rel, ok := strings.CutPrefix(cgroup, t.Layout.Root)
	if !ok || (rel != "" && rel[0] != '/') {
		return -1, &fs.PathError{Op: "open", Path: name, Err: fmt.Errorf("outside %s", t.Layout.Root)}
	}
	rel = path.Join(".", strings.TrimPrefix(rel, "/"), file)
	how := unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC | unix.O_NOCTTY),
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	}
	defer runtime.KeepAlive(t)
	for {
		fd, err := unix.Openat2(int(t.kubepods.Fd()), rel, &how)
		switch {
		case err == nil:
			return fd, nil
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN): // a rename raced with the resolution
			continue
		}
		return -1, &fs.PathError{Op: "open", Path: name, Err: gone(err)}
	}
}

// gone turns ENODEV, what a file of a removed cgroup gives, into the ENOENT that
// it will be a moment later.
func gone(err error) error {
	if errors.Is(err, unix.ENODEV) {
		return fs.ErrNotExist
	}
	return err
}

// Children lists the names of the cgroups directly beneath one, sorted.
func (t *Tree) Children(cgroup string) ([]string, error) {
	fd, err := t.open(cgroup, "", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	d := os.NewFile(uintptr(fd), t.dir(cgroup))
	defer d.Close() //nolint:errcheck // read only
	entries, err := d.ReadDir(-1)
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", t.dir(cgroup), gone(err))
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	return names, nil
}

// Value reads a file.
func (t *Tree) Value(cgroup string, file memory.File) (memory.Value, error) {
	fd, err := t.open(cgroup, string(file), unix.O_RDONLY)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd) //nolint:errcheck // read only
	return t.read(fd, cgroup, file)
}

func (t *Tree) read(fd int, cgroup string, file memory.File) (memory.Value, error) {
	var buf [64]byte
	n, err := unix.Pread(fd, buf[:], 0)
	if err != nil {
		return 0, &fs.PathError{Op: "read", Path: path.Join(t.dir(cgroup), string(file)), Err: gone(err)}
	}
	v, err := memory.Parse(strings.TrimSuffix(string(buf[:n]), "\n"))
	if err != nil {
		return 0, &fs.PathError{Op: "read", Path: path.Join(t.dir(cgroup), string(file)), Err: err}
	}
	return v, nil
}

// Values reads the four files of a cgroup.
func (t *Tree) Values(cgroup string) (memory.Values, error) {
	vs := make(memory.Values, len(memory.Files))
	for _, file := range memory.Files {
		v, err := t.Value(cgroup, file)
		if err != nil {
			return nil, err
		}
		vs[file] = v
	}
	return vs, nil
}

// NotKeptError says that the kernel shows another value than the one that was
// just written: somebody else wrote in between, or the value was not one that
// the kernel can hold.
type NotKeptError struct {
	Path      string
	Want, Got memory.Value
}

func (e *NotKeptError) Error() string {
	return fmt.Sprintf("wrote %s to %s, which then held %s", e.Want, e.Path, e.Got)
}

// Write writes v to a file in one write(2) and reads it back. v must be as the
// kernel keeps it, floored to a page.
//
// Lowering memory.high below what is used sets the value at once and then
// reclaims in the writer, for seconds if the memory is busy. O_NONBLOCK spares
// the writer that on kernels that honour it (it does on 7.2, not on 6.12).
// Lowering memory.max below what is used kills: it is for the caller to see that
// this does not happen.
func (t *Tree) Write(cgroup string, file memory.File, v memory.Value) error {
	name := path.Join(t.dir(cgroup), string(file))
	flags := unix.O_RDWR | unix.O_NONBLOCK
	if t.fixture {
		flags |= unix.O_TRUNC
	}
	fd, err := t.open(cgroup, string(file), flags)
	if err != nil {
		return err
	}
	defer unix.Close(fd) //nolint:errcheck // what was written is read back
	text := v.String()
	n, err := unix.Write(fd, []byte(text))
	if err == nil && n != len(text) {
		err = fmt.Errorf("wrote %d of %d bytes", n, len(text))
	}
	if err != nil {
		return &fs.PathError{Op: "write " + text + " to", Path: name, Err: gone(err)}
	}
	got, err := t.read(fd, cgroup, file)
	if err != nil {
		return err
	}
	if got != v {
		return &NotKeptError{Path: name, Want: v, Got: got}
	}
	return nil
}

// Usage reads memory.current: the bytes that the cgroup and its descendants use.
func (t *Tree) Usage(cgroup string) (memory.Value, error) {
	return t.Value(cgroup, "memory.current")
}

// Same reports whether two trees are the same cgroup with the same layout. A
// cgroup's inode number is unique while the system is up.
func (t *Tree) Same(other *Tree) bool {
	a, errA := t.kubepods.Stat()
	b, errB := other.kubepods.Stat()
	return errA == nil && errB == nil && os.SameFile(a, b) && t.Layout == other.Layout && t.Mount == other.Mount
}
