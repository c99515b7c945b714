package cgroup

import (
	"fmt"
	"io/fs"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/memqos/memqos/memory"
)

// Dir is an open cgroup. It stays that very cgroup: once that is removed, all
// access gives an error that is fs.ErrNotExist, even if another of the same name
// has been made.
type Dir struct {
	// Cgroup is the path below the cgroup2 mount.
	Cgroup string
	// Inode is the inode number of the directory: unique while the system is up.
	Inode uint64
	// Changed is when the directory's attributes last changed: at its creation, or
	// when a cgroup was made or removed beneath it.
	Changed time.Time

	fd   int
	tree *Tree
}

// Open opens a cgroup.
func (t *Tree) Open(cgroup string) (*Dir, error) {
	fd, err := t.open(cgroup, unix.O_PATH)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		_ = unix.Close(fd)
		return nil, &fs.PathError{Op: "stat", Path: t.dir(cgroup), Err: gone(err)}
	}
	return &Dir{Cgroup: cgroup, Inode: st.Ino, Changed: time.Unix(st.Ctim.Unix()), fd: fd, tree: t}, nil
}

// Is reports whether a cgroup is there and is the one with that inode number.
func (t *Tree) Is(cgroup string, inode uint64) bool {
	d, err := t.Open(cgroup)
	if err != nil {
		return false
	}
	defer d.Close()
	return d.Inode == inode
}

// Exists reports whether a cgroup is there.
func (t *Tree) Exists(cgroup string) bool {
	fd, err := t.open(cgroup, unix.O_PATH)
	if err != nil {
		return false
	}
	_ = unix.Close(fd) // O_PATH: nothing is pending
	return true
}

// Close closes the directory.
func (d *Dir) Close() { _ = unix.Close(d.fd) } // O_PATH: nothing is pending

func (d *Dir) path(file memory.File) string { return path.Join(d.tree.dir(d.Cgroup), string(file)) }

// Value reads a file.
func (d *Dir) Value(file memory.File) (memory.Value, error) {
	fd, err := openBeneath(d.fd, string(file), unix.O_RDONLY|unix.O_NOCTTY)
	if err != nil {
		return 0, &fs.PathError{Op: "open", Path: d.path(file), Err: err}
	}
	defer unix.Close(fd) //nolint:errcheck // read only
	return d.read(fd, file)
}

func (d *Dir) read(fd int, file memory.File) (memory.Value, error) {
	var buf [64]byte
	n, err := unix.Pread(fd, buf[:], 0)
	if err != nil {
		return 0, &fs.PathError{Op: "read", Path: d.path(file), Err: gone(err)}
	}
	v, err := memory.Parse(strings.TrimSuffix(string(buf[:n]), "\n"))
	if err != nil {
		return 0, &fs.PathError{Op: "read", Path: d.path(file), Err: err}
	}
	return v, nil
}

// Usage reads memory.current: the bytes that the cgroup and its descendants use.
func (d *Dir) Usage() (memory.Value, error) { return d.Value("memory.current") }

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
func (d *Dir) Write(file memory.File, v memory.Value) error {
	flags := unix.O_RDWR | unix.O_NOCTTY | unix.O_NONBLOCK
	if d.tree.fixture {
		flags |= unix.O_TRUNC
	}
	fd, err := openBeneath(d.fd, string(file), flags)
	if err != nil {
		return &fs.PathError{Op: "open", Path: d.path(file), Err: err}
	}
	defer unix.Close(fd) //nolint:errcheck // what was written is read back
	return d.write(fd, file, v)
}

func (d *Dir) write(fd int, file memory.File, v memory.Value) error {
	text := v.String()
	n, err := unix.Write(fd, []byte(text))
	if err == nil && n != len(text) {
		err = fmt.Errorf("wrote %d of %d bytes", n, len(text))
	}
	if err != nil {
		return &fs.PathError{Op: "write " + text + " to", Path: d.path(file), Err: gone(err)}
	}
	got, err := d.read(fd, file)
	if err != nil {
		return err
	}
	if got != v {
		return &NotKeptError{Path: d.path(file), Want: v, Got: got}
	}
	return nil
}
