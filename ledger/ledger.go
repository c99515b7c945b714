package ledger

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/memqos/memqos/memory"
)

const (
	fileName = "ledger"
	lockName = "lock"
	// header is the first line, with the boot that the entries are of.
	header = "memqos ledger v1 boot "
	// slack is how many lines may tell of nothing that still is before the file is
	// written anew.
	slack = 4096
)

// ErrInUse says that another process has the ledger open: a running agent.
var ErrInUse = errors.New("in use by a running memqos")

// Key names a file of a cgroup. The inode number of a cgroup's directory is
// unique while the system is up; its path is not.
type Key struct {
	Inode uint64
	File  memory.File
}

// Entry is a file that memqos has written.
type Entry struct {
	// Cgroup is the path of the cgroup below the cgroup2 mount.
	Cgroup string
	// Original is what somebody else last wrote: what would be there without
	// memqos.
	Original memory.Value
	// Wrote is what memqos wrote last, or was about to.
	Wrote memory.Value
}

// Ledger is the open ledger of one agent. It is for concurrent use.
type Ledger struct {
	dir, boot string
	lock      *os.File

	mu      sync.Mutex
	file    *os.File
	lines   int
	entries map[Key]Entry
	fresh   bool
}

// Open opens the ledger in a state directory, which it makes if need be, and
// keeps others from opening it until Close. Entries of another boot are dropped.
// boot is the kernel's boot id.
func Open(dir, boot string) (_ *Ledger, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the state directory: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, lockName), os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the state's lock: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, lock.Close())
		}
	}()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return nil, fmt.Errorf("state directory %s: %w", dir, ErrInUse)
	} else if err != nil {
		return nil, fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	l := &Ledger{dir: dir, boot: boot, lock: lock, entries: map[Key]Entry{}}
	data, err := os.ReadFile(l.Path())
	switch {
	case errors.Is(err, fs.ErrNotExist):
		l.fresh = true
	case err != nil:
		return nil, fmt.Errorf("read the ledger: %w", err)
	default:
		entries, ok := parse(data, boot)
		l.entries, l.fresh = entries, !ok
	}
	return l, l.rewrite()
}

// Path is the file.
func (l *Ledger) Path() string { return filepath.Join(l.dir, fileName) }

// Fresh reports whether there was no ledger of this boot: memqos is new on the
// node, or its state was lost.
func (l *Ledger) Fresh() bool { return l.fresh }

// parse reads a ledger. ok is false if it is none, or of another boot. A line
// that was cut off by a kill, or is none, tells of a write that was not made and
// is left out.
func parse(data []byte, boot string) (entries map[Key]Entry, ok bool) {
	entries = map[Key]Entry{}
	first, rest, _ := bytes.Cut(data, []byte("\n"))
	if string(first) != header+boot {
		return entries, false
	}
	for len(rest) > 0 {
		line, after, whole := bytes.Cut(rest, []byte("\n"))
		rest = after
		if !whole {
			break
		}
		if key, e, ok := parseLine(string(line)); ok {
			entries[key] = e
		}
	}
	return entries, true
}

func parseLine(line string) (key Key, e Entry, ok bool) {
	fields := strings.SplitN(line, " ", 5)
	if len(fields) != 5 || fields[4] == "" {
		return key, e, false
	}
	inode, err := memory.Parse(fields[0])
	key = Key{uint64(inode), memory.File(fields[1])}
	original, errOriginal := memory.Parse(fields[2])
	wrote, errWrote := memory.Parse(fields[3])
	if err != nil || errOriginal != nil || errWrote != nil || !slices.Contains(memory.Files, key.File) {
		return key, e, false
	}
	return key, Entry{Cgroup: fields[4], Original: original, Wrote: wrote}, true
}

func line(key Key, e Entry) string {
	return fmt.Sprintf("%d %s %s %s %s\n", key.Inode, key.File, e.Original, e.Wrote, e.Cgroup)
}

// Before records that a file which holds from is about to be written. What it
// holds is the original, unless it is what memqos wrote itself.
func (l *Ledger) Before(key Key, cgroup string, from, to memory.Value) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	e, known := l.entries[key]
	if !known || e.Wrote != from {
		e.Original = from
	}
	e.Cgroup, e.Wrote = cgroup, to
	if _, err := l.file.WriteString(line(key, e)); err != nil {
		return fmt.Errorf("record a write to %s of %s: %w", key.File, cgroup, err)
	}
	l.entries[key] = e
	l.lines++
	return nil
}

// Get returns what is known of a file; ok is false if memqos never wrote it.
func (l *Ledger) Get(key Key) (e Entry, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e, ok = l.entries[key]
	return e, ok
}

// All returns every entry.
func (l *Ledger) All() map[Key]Entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.entries)
}

// Forget drops entries, such as those of files that were given back.
func (l *Ledger) Forget(keys ...Key) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, key := range keys {
		delete(l.entries, key)
	}
	return l.rewrite()
}

// Prune drops the entries of cgroups that are gone once they are many. alive
// reports whether a cgroup is there and has that inode number.
func (l *Ledger) Prune(alive func(cgroup string, inode uint64) bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lines < slack {
		return nil
	}
	maps.DeleteFunc(l.entries, func(key Key, e Entry) bool { return !alive(e.Cgroup, key.Inode) })
	return l.rewrite()
}

// rewrite replaces the file by one that has each entry once.
func (l *Ledger) rewrite() error {
	next := l.Path() + ".new"
	f, err := os.OpenFile(next, os.O_CREATE|os.O_TRUNC|os.O_WRONLY|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("write the ledger anew: %w", err)
	}
	w := bufio.NewWriter(f)
	_, err = w.WriteString(header + l.boot + "\n")
	for key, e := range l.entries {
		_, errLine := w.WriteString(line(key, e))
		err = errors.Join(err, errLine)
	}
	err = errors.Join(err, w.Flush())
	if err == nil {
		err = os.Rename(next, l.Path())
	}
	if err != nil {
		return fmt.Errorf("write the ledger anew: %w", errors.Join(err, f.Close()))
	}
	if l.file != nil {
		_ = l.file.Close() // replaced: what it held is in the new one
	}
	l.file, l.lines = f, 0
	return nil
}

// Close lets others open the ledger.
func (l *Ledger) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return errors.Join(l.file.Close(), l.lock.Close())
}
