package cgroup

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"

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
	own      func() string
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
	t := &Tree{Layout: layout, Mount: mount, kubepods: os.NewFile(uintptr(fd), dir), fixture: true}
	t.own = sync.OnceValue(func() string { return t.holding(layout.Root, os.Getpid()) })
	return t, nil
}

// dir is the path of a cgroup for messages.
func (t *Tree) dir(cgroup string) string {
	if cgroup == "" {
		cgroup = t.Layout.Root
	}
	return path.Join(t.Mount, cgroup)
}

// open opens a cgroup beneath kubepods and nowhere else.
func (t *Tree) open(cgroup string, flags int) (int, error) {
	rel, ok := strings.CutPrefix(cgroup, t.Layout.Root)
	if !ok || (rel != "" && rel[0] != '/') {
		return -1, &fs.PathError{Op: "open", Path: t.dir(cgroup), Err: fmt.Errorf("outside %s", t.Layout.Root)}
	}
	defer runtime.KeepAlive(t)
	fd, err := openBeneath(int(t.kubepods.Fd()), path.Join(".", strings.TrimPrefix(rel, "/")), flags|unix.O_DIRECTORY)
	if err != nil {
		return -1, &fs.PathError{Op: "open", Path: t.dir(cgroup), Err: err}
	}
	return fd, nil
}

// openBeneath opens what is beneath a directory: through no link and on no other
// mount.
func openBeneath(dir int, name string, flags int) (int, error) {
	how := unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC),
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	}
	for {
		fd, err := unix.Openat2(dir, name, &how)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) { // a rename raced with the resolution
			continue
		}
		return fd, gone(err)
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
	fd, err := t.open(cgroup, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd) //nolint:errcheck // read only
	var names []string
	var buf [8 << 10]byte
	for {
		n, err := unix.Getdents(fd, buf[:])
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return nil, fmt.Errorf("list %s: %w", t.dir(cgroup), gone(err))
		case n == 0:
			slices.Sort(names)
			return names, nil
		default:
			names = appendDirectories(names, buf[:n])
		}
	}
}

// appendDirectories appends the names of the directories in what getdents64(2) gave.
// os.File.ReadDir would make an object of each of the 80 files that a cgroup has.
func appendDirectories(names []string, buf []byte) []string {
	const reclen, kind, name = 16, 18, 19 // offsets in struct linux_dirent64
	for len(buf) > name {
		entry := buf[:min(int(binary.NativeEndian.Uint16(buf[reclen:])), len(buf))]
		if len(entry) <= name {
			return names
		}
		buf = buf[len(entry):]
		if entry[kind] != unix.DT_DIR {
			continue
		}
		if s := unix.ByteSliceToString(entry[name:]); s != "." && s != ".." {
			names = append(names, s)
		}
	}
	return names
}

// Own is the cgroup that holds this process, where that is beneath kubepods: the
// agent's own container. "" is none. No name would tell it: in a cgroup namespace of
// its own a process is shown as being at /.
func (t *Tree) Own() string { return t.own() }

// holding looks for a process, by its id in this process's PID namespace. A cgroup
// that cannot be read is not ours.
func (t *Tree) holding(cgroup string, pid int) string {
	if d, err := t.Open(cgroup); err == nil {
		var buf [statSize]byte
		procs, err := d.slurp("cgroup.procs", buf[:]) // those of other namespaces are 0
		d.Close()
		if err == nil && slices.Contains(strings.Fields(string(procs)), strconv.Itoa(pid)) {
			return cgroup
		}
	}
	children, err := t.Children(cgroup)
	if err != nil {
		return ""
	}
	for _, name := range children {
		if found := t.holding(path.Join(cgroup, name), pid); found != "" {
			return found
		}
	}
	return ""
}

// Value reads a file of a cgroup.
func (t *Tree) Value(cgroup string, file memory.File) (memory.Value, error) {
	d, err := t.Open(cgroup)
	if err != nil {
		return 0, err
	}
	defer d.Close()
	return d.Value(file)
}

// Values reads the four files of a cgroup.
func (t *Tree) Values(cgroup string) (memory.Values, error) {
	d, err := t.Open(cgroup)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	vs := make(memory.Values, len(memory.Files))
	for _, file := range memory.Files {
		if vs[file], err = d.Value(file); err != nil {
			return nil, err
		}
	}
	return vs, nil
}

// Same reports whether two trees are the same cgroup with the same layout. A
// cgroup's inode number is unique while the system is up.
func (t *Tree) Same(other *Tree) bool {
	a, errA := t.kubepods.Stat()
	b, errB := other.kubepods.Stat()
	return errA == nil && errB == nil && os.SameFile(a, b) && t.Layout == other.Layout && t.Mount == other.Mount
}
