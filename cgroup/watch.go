package cgroup

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/memqos/memqos/memory"
)

// MemoryEvents is the file that counts what memory.low, high and max did to a
// cgroup and to those beneath it. The kernel reports a change of it to inotify
// at most once in 10 ms.
const MemoryEvents memory.File = "memory.events"

// CrunChild is the name of the cgroup that crun, under the systemd driver, makes
// within a container's scope for the processes.
const CrunChild = "container"

// EventKind says what happened.
type EventKind uint8

// The kinds of events.
const (
	// Created: the cgroup was made, or a watch of it that was refused has been had
	// since. It is watched by now, or counted as unwatched.
	Created EventKind = iota + 1
	// Removed: the cgroup is not there any longer. If one of the same name has been
	// made since, Created follows.
	Removed
	// Modified: somebody, this process included, wrote to File, or the kernel
	// changed it (memory.events).
	Modified
	// Lost: events were lost, and any cgroup may have changed, come or gone.
	// Cgroup is empty. What is there by now is watched again.
	Lost
)

// String returns the name of the kind.
func (k EventKind) String() string {
	switch k {
	case Created:
		return "Created"
	case Removed:
		return "Removed"
	case Modified:
		return "Modified"
	case Lost:
		return "Lost"
	}
	return strconv.Itoa(int(k))
}

// Event is something that happened to a cgroup of a Tree.
type Event struct {
	Kind EventKind
	// Cgroup is a path as a Layout gives it, below the cgroup2 mount.
	Cgroup string
	// File is what was modified: one of memory.Files or MemoryEvents.
	File memory.File
}

// InotifyError says that the kernel gives this process no inotify instance: for
// EMFILE, fs.inotify.max_user_instances or the process's limit of open files is
// reached. A caller can go on by polling.
type InotifyError struct{ Err error }

func (e *InotifyError) Error() string {
	return fmt.Sprintf("inotify_init: %v (see fs.inotify.max_user_instances)", e.Err)
}

// Unwrap returns the errno.
func (e *InotifyError) Unwrap() error { return e.Err }

// Watcher reports what happens to a Tree: to kubepods, the QoS classes, the pods,
// their containers (sandboxes among them: they look alike), and the cgroup that
// crun makes in a container. Nothing else beneath kubepods is watched, so what a
// privileged container makes in its own cgroup costs at most one watch.
//
// It holds one inotify instance, and per cgroup a watch, at kubepods and the classes one
// more for each file that is reported, and a descriptor: the kernel reports a change of
// memory.events only while the file's inode is in memory (fs/kernfs,
// kernfs_notify_workfn), which it drops where memory is short: there where there is
// something to report. That kubepods itself is removed goes
// unnoticed: nobody watches its parent.
type Watcher struct {
	tree    *Tree
	inotify *os.File
	conn    syscall.RawConn // of inotify. File.Fd would make it block

	// What follows belongs to Watch, and then to Run.
	emit      func(Event) // nil: nobody is told
	root      *node
	nodes     map[int32]*node // the watched, by watch descriptor
	files     map[int32]watchedFile
	unwatched map[*node]struct{}
	modified  []*node // those with something in node.reported
	lost      bool    // the queue overflowed
	freed     bool    // a watch was removed

	again                 atomic.Bool // Rewatch was called
	taken                 atomic.Bool // by Run, or closed without
	watches, unwatchedNum atomic.Int64
}

// node is a cgroup that is known to a Watcher.
type node struct {
	cgroup   string
	level    level
	class    corev1.PodQOSClass // of kubepods and the QoS classes: that of the pods beneath
	parent   *node
	children map[string]*node
	wd       int32   // watch descriptor; 0, which inotify never gives, without a watch
	files    []int32 // likewise, of files with a watch of their own
	narrowed bool    // by narrow, or tried to be
	events   int     // an O_PATH descriptor of memory.events while it is watched; 0: none
	reported uint8   // the files that were reported as modified in this batch, as bits
}

// watchedFile is a file with a watch of its own.
type watchedFile struct {
	node *node
	file memory.File
	bit  uint8 // in node.reported
}

type level uint8

const (
	levelKubepods level = iota
	levelQOS
	levelPod
	levelContainer
	levelCrunChild
)

// beneath tells what the cgroup called name in n is. ok is false for one that is
// not to be watched.
func (l Layout) beneath(n *node, name string) (lev level, class corev1.PodQOSClass, ok bool) {
	switch n.level {
	case levelKubepods:
		for _, class := range []corev1.PodQOSClass{corev1.PodQOSBurstable, corev1.PodQOSBestEffort} {
			if name == path.Base(l.QOS(class)) {
				return levelQOS, class, true
			}
		}
		return levelPod, "", l.IsPod(corev1.PodQOSGuaranteed, name)
	case levelQOS:
		return levelPod, "", l.IsPod(n.class, name)
	case levelPod:
		_, ok := ContainerID(l.Driver, name)
		return levelContainer, "", ok
	case levelContainer:
		return levelCrunChild, "", name == CrunChild
	}
	return 0, "", false
}

// Watch begins to watch the tree. Run must be called to learn what happens, or
// Close to give up.
//
// There is no event for what is there already: whoever lists the tree after Watch
// has returned misses nothing. The error is an InotifyError if the kernel gives
// no instance, and fs.ErrNotExist if kubepods is gone. Too few watches
// (fs.inotify.max_user_watches) are no error: see Unwatched.
func (t *Tree) Watch() (*Watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, &InotifyError{Err: err}
	}
	w := &Watcher{
		tree:      t,
		inotify:   os.NewFile(uintptr(fd), "inotify"), // non-blocking: reads wait in the poller and can be interrupted
		unwatched: map[*node]struct{}{},
	}
	if w.conn, err = w.inotify.SyscallConn(); err == nil {
		err = w.watchAll()
	}
	if err != nil && !errors.Is(err, unix.ENOSPC) {
		_ = w.Close()
		return nil, err
	}
	w.narrow()
	w.count()
	return w, nil
}

// Watches returns the number of cgroups that are watched. It may be called at any
// time.
func (w *Watcher) Watches() int { return int(w.watches.Load()) }

// Unwatched returns the number of known cgroups that the kernel refused a watch
// of, most likely for fs.inotify.max_user_watches. Nothing is reported of them but
// that they were created and removed, and nothing at all of what is in them. They
// are tried again once a watch is free, and by Rewatch. It may be called at any
// time.
func (w *Watcher) Unwatched() int { return int(w.unwatchedNum.Load()) }

// Rewatch makes Run try again to watch what is unwatched; what it succeeds with is
// reported as Created. It may be called at any time and does not wait.
func (w *Watcher) Rewatch() {
	w.again.Store(true)
	w.interrupt()
}

// interrupt ends a read under way, or else the next.
func (w *Watcher) interrupt() {
	_ = w.inotify.SetReadDeadline(time.Unix(1, 0)) // fails once closed, when there is no read
}

// Close ends Run and releases everything. Run does so itself when it returns.
func (w *Watcher) Close() error {
	if !w.taken.Swap(true) {
		w.release(w.nodes)
	}
	if err := w.inotify.Close(); !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// Run calls emit for each event, from this goroutine and in order, until ctx ends
// or the Watcher is closed; then it returns nil. Events that are equal and were
// read at once are reported once. While emit works, the kernel queues
// (fs.inotify.max_queued_events; beyond it events are Lost).
func (w *Watcher) Run(ctx context.Context, emit func(Event)) error {
	if w.taken.Swap(true) {
		return nil
	}
	defer func() { w.release(w.nodes) }()
	defer w.Close() //nolint:errcheck // nothing was written
	defer context.AfterFunc(ctx, w.interrupt)()
	w.emit = emit
	buf := make([]byte, 16<<10) // 512 events of memory.events
	for ctx.Err() == nil {
		n, err := w.inotify.Read(buf)
		switch {
		case errors.Is(err, os.ErrClosed):
			return nil
		case errors.Is(err, os.ErrDeadlineExceeded):
			// The context is looked at after the deadline is gone: no interruption is missed.
			_ = w.inotify.SetReadDeadline(time.Time{}) // fails once closed, as the read will
			if w.again.Swap(false) {
				w.retry()
				w.narrow()
				w.count()
			}
		case err != nil:
			return fmt.Errorf("read inotify: %w", err)
		default:
			w.batch(buf[:n])
		}
	}
	return nil
}

func (w *Watcher) report(e Event) {
	if w.emit != nil {
		w.emit(e)
	}
}

func (w *Watcher) count() {
	w.watches.Store(int64(len(w.nodes)))
	w.unwatchedNum.Store(int64(len(w.unwatched)))
}

// countedOut is how long after a watch's end its place is free, and more
// (inotify_ignored_and_remove_idr in fs/notify/inotify).
const countedOut = 100 * time.Millisecond

// batch handles what one read(2) gave: struct inotify_event, each with a name that
// is padded with zeroes.
func (w *Watcher) batch(buf []byte) {
	for len(buf) >= unix.SizeofInotifyEvent {
		wd := int32(binary.NativeEndian.Uint32(buf))
		mask := binary.NativeEndian.Uint32(buf[4:])
		end := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(buf[12:]))
		name := buf[unix.SizeofInotifyEvent:end]
		if i := bytes.IndexByte(name, 0); i >= 0 {
			name = name[:i]
		}
		w.event(wd, mask, name)
		buf = buf[end:]
	}
	for _, n := range w.modified {
		n.reported = 0
	}
	clear(w.modified)
	w.modified = w.modified[:0]
	switch {
	case w.lost:
		w.lost = false
		// Before anybody is told, so that whoever looks then misses nothing.
		w.resync()
		w.report(Event{Kind: Lost})
	case w.freed:
		if w.retry(); len(w.unwatched) > 0 {
			// The kernel tells of a watch's end a moment before it counts it out.
			w.again.Store(true)
			_ = w.inotify.SetReadDeadline(time.Now().Add(countedOut)) // fails once closed, as the next read will
		}
	}
	w.freed = false
	w.narrow()
	w.count()
}

// event handles one event. A modification that nobody asked for ends here without
// an allocation: cgroup.procs and cpu.* are written all the time.
func (w *Watcher) event(wd int32, mask uint32, name []byte) {
	switch {
	case mask&unix.IN_MODIFY != 0:
		f := w.files[wd]
		if f.node == nil {
			f.node = w.nodes[wd]
			f.file, f.bit = reportedFile(name)
		}
		n := f.node
		if n == nil || f.bit == 0 || n.reported&f.bit != 0 {
			return
		}
		if n.reported == 0 {
			w.modified = append(w.modified, n)
		}
		n.reported |= f.bit
		w.report(Event{Kind: Modified, Cgroup: n.cgroup, File: f.file})
	case mask&unix.IN_Q_OVERFLOW != 0:
		w.lost = true
	case mask&unix.IN_IGNORED != 0:
		// The kernel dropped the watch with the cgroup (7.2 does, 6.12 does not). That
		// it was removed, the parent's watch says.
		if n := w.nodes[wd]; n != nil {
			delete(w.nodes, wd)
			n.wd = 0
			n.release()
		}
		if f, ok := w.files[wd]; ok {
			w.lostFile(f.node)
		}
		w.freed = true // also of one that was removed before: only now it is free
	case mask&unix.IN_ISDIR == 0: // a file made or removed, in a fixture
	case mask&unix.IN_CREATE != 0:
		if n := w.nodes[wd]; n != nil {
			w.found(n, string(name))
		}
	case mask&unix.IN_DELETE != 0:
		if n := w.nodes[wd]; n != nil && n.children[string(name)] != nil {
			w.remove(n.children[string(name)])
		}
	}
}

// reportedFiles are the files that are reported, each with its place as its bit in
// node.reported.
var reportedFiles = [...]memory.File{memory.Min, memory.Low, memory.High, memory.Max, MemoryEvents}

// reportedFile returns the file called name and its bit, which is 0 for a file that is
// not to be reported.
func reportedFile(name []byte) (memory.File, uint8) {
	for i, file := range reportedFiles {
		if string(name) == string(file) {
			return file, 1 << i
		}
	}
	return "", 0
}

// found takes in a cgroup of which the parent's watch or a listing told.
func (w *Watcher) found(parent *node, name string) {
	if parent.children[name] != nil {
		return // listed before its event was read. Had it been removed since, that event would have come before
	}
	lev, class, ok := w.tree.Layout.beneath(parent, name)
	if !ok {
		return
	}
	n := &node{cgroup: path.Join(parent.cgroup, name), level: lev, class: class, parent: parent}
	switch err := w.watch(n); {
	case errors.Is(err, errNoCgroup):
		return
	case err != nil:
		w.unwatched[n] = struct{}{}
		w.report(Event{Kind: Created, Cgroup: n.cgroup})
	}
	if parent.children == nil {
		parent.children = map[string]*node{}
	}
	parent.children[name] = n
}

// watch adds the watch of a cgroup, and only then looks for what is in it: of what
// is made after that, the watch tells.
func (w *Watcher) watch(n *node) error {
	names, err := w.attach(n)
	if err != nil {
		return err
	}
	w.nodes[n.wd] = n
	w.report(Event{Kind: Created, Cgroup: n.cgroup})
	for _, name := range names {
		w.found(n, name)
	}
	return nil
}

// errNoCgroup says that a cgroup is gone, or was none.
var errNoCgroup = errors.New("no cgroup")

// attach adds a watch and lists what is in the directory then, if it has
// subdirectories. The watch is added by way of an open descriptor: a path would be
// resolved by the kernel anew, links and mounts included.
func (w *Watcher) attach(n *node) (names []string, err error) {
	fd, err := w.tree.open(n.cgroup, unix.O_RDONLY)
	switch {
	case IsGone(err), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP), errors.Is(err, unix.EXDEV):
		return nil, fmt.Errorf("%w: %w", errNoCgroup, err)
	case err != nil:
		return nil, err
	}
	dir := os.NewFile(uintptr(fd), w.tree.dir(n.cgroup))
	defer dir.Close() //nolint:errcheck // read only

	events, err := openBeneath(fd, string(MemoryEvents), unix.O_PATH)
	switch {
	case IsGone(err):
		events = 0 // the cgroup's end, which will be told, or it has no such file
	case err != nil:
		return nil, &fs.PathError{Op: "open", Path: path.Join(w.tree.dir(n.cgroup), string(MemoryEvents)), Err: err}
	}
	n.events = events
	if n.wd, err = w.add(fd, maskAll); err != nil {
		n.wd = 0
		n.release()
		return nil, fmt.Errorf("inotify_add_watch %s: %w", w.tree.dir(n.cgroup), err)
	}
	// Most cgroups are leaves, and a listing names all of their 80 files. A cgroup's
	// links are its subdirectories and two more (fs/kernfs, kernfs_refresh_inode).
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err == nil && st.Nlink == 2 {
		return nil, nil
	}
	if names, err = dir.Readdirnames(-1); err != nil {
		w.detachAll(n)
		if IsGone(gone(err)) {
			err = fmt.Errorf("%w: %w", errNoCgroup, err)
		}
		return nil, err
	}
	return names, nil
}

// IN_ACCESS and IN_OPEN would report this process's own reading.
const maskAll = unix.IN_CREATE | unix.IN_DELETE | unix.IN_MODIFY | unix.IN_ONLYDIR

// narrow watches the files of kubepods and the classes one by one, if that can be had once
// every cgroup is watched. Their directories would tell of cpu.weight and others first,
// which systemd writes just before memory.min: a process that was woken for nothing waits
// its turn when there is something to do. Of BestEffort only memory.events counts: nothing
// is ever wanted of the rest, which is written just before Burstable's.
//
// Where the memory controller of such a cgroup is switched off and on again, its files are
// others. Kernels up to 6.12 do not tell; there the next full pass finds what was missed.
func (w *Watcher) narrow() {
	if len(w.unwatched) > 0 {
		return
	}
	w.narrowOne(w.root)
	for _, n := range w.root.children {
		if n.level == levelQOS {
			w.narrowOne(n)
		}
	}
}

func (w *Watcher) narrowOne(n *node) {
	if n.wd == 0 || n.narrowed {
		return
	}
	n.narrowed = true // or tried: what is added in vain is removed, which is an event
	fd, err := w.tree.open(n.cgroup, unix.O_PATH)
	if err != nil {
		return // its end will be told
	}
	defer unix.Close(fd) //nolint:errcheck // O_PATH: nothing is pending
	for i, name := range reportedFiles {
		if n.class == corev1.PodQOSBestEffort && name != MemoryEvents {
			continue
		}
		wd, err := w.addFile(fd, name)
		if err != nil { // it is not there, or there are too few watches: the directory's has to do
			w.detachFiles(n)
			return
		}
		w.files[wd] = watchedFile{n, name, 1 << i}
		n.files = append(n.files, wd)
	}
	if !w.remask(n, fd, maskAll&^unix.IN_MODIFY) {
		w.detachFiles(n)
	}
}

// remask changes what the watch of a cgroup tells. It does not if dir is another one of
// the name.
func (w *Watcher) remask(n *node, dir int, mask uint32) bool {
	wd, err := w.add(dir, mask)
	if err == nil && w.nodes[wd] == nil {
		w.detach(wd) // that there is another one will be told
	}
	return err == nil && wd == n.wd
}

func (w *Watcher) addFile(dir int, name memory.File) (wd int32, err error) {
	fd, err := openBeneath(dir, string(name), unix.O_PATH)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd) //nolint:errcheck // O_PATH: nothing is pending
	return w.add(fd, unix.IN_MODIFY)
}

// lostFile makes do with the watch of the directory where that of a file has ended though
// the cgroup is there: its controller was switched off, and perhaps on again.
func (w *Watcher) lostFile(n *node) {
	w.detachFiles(n)
	fd, err := w.tree.open(n.cgroup, unix.O_PATH)
	if err != nil {
		return // its end will be told
	}
	defer unix.Close(fd) //nolint:errcheck // O_PATH: nothing is pending
	w.remask(n, fd, maskAll)
}

// add adds the watch of what is open, or changes its mask: the kernel knows it by the
// inode.
func (w *Watcher) add(fd int, mask uint32) (wd int32, err error) {
	err = w.control(func(inotify int) error {
		n, err := unix.InotifyAddWatch(inotify, "/proc/self/fd/"+strconv.Itoa(fd), mask)
		wd = int32(n)
		return err
	})
	if errors.Is(err, unix.ENOENT) { // not what is open
		return 0, errors.New("/proc is not mounted")
	}
	return wd, err
}

func (w *Watcher) detachFiles(n *node) {
	for _, wd := range n.files {
		w.detach(wd)
		delete(w.files, wd)
	}
	n.files = nil
}

// detachAll removes the watches of a cgroup and what it holds besides.
func (w *Watcher) detachAll(n *node) {
	w.detachFiles(n)
	if n.wd != 0 {
		w.detach(n.wd)
		delete(w.nodes, n.wd)
	}
	n.wd = 0
	n.release()
}

// release closes what a watched cgroup holds besides its watch.
func (n *node) release() {
	if n.events != 0 {
		_ = unix.Close(n.events) // O_PATH: nothing is pending
		n.events = 0
	}
}

func (w *Watcher) release(nodes map[int32]*node) {
	for _, n := range nodes {
		n.release()
	}
}

// detach removes a watch. Up to 6.12 that of a removed cgroup stays until then;
// since, the kernel may have been first.
func (w *Watcher) detach(wd int32) {
	_ = w.control(func(inotify int) error {
		_, err := unix.InotifyRmWatch(inotify, uint32(wd))
		return err
	})
}

// control calls f with the inotify instance, which stays open meanwhile.
func (w *Watcher) control(f func(inotify int) error) error {
	var err error
	if errClosed := w.conn.Control(func(fd uintptr) { err = f(int(fd)) }); errClosed != nil {
		return errClosed
	}
	return err
}

// remove forgets a cgroup and, should their events be missing, those in it.
func (w *Watcher) remove(n *node) {
	for _, child := range n.children {
		w.remove(child)
	}
	w.freed = w.freed || n.wd != 0
	w.detachAll(n)
	delete(w.unwatched, n)
	delete(n.parent.children, path.Base(n.cgroup))
	w.report(Event{Kind: Removed, Cgroup: n.cgroup})
}

// retry tries again to watch what is unwatched, until the kernel refuses.
func (w *Watcher) retry() {
	for _, n := range slices.Collect(maps.Keys(w.unwatched)) {
		err := w.watch(n)
		switch {
		case err == nil:
			delete(w.unwatched, n)
		case errors.Is(err, errNoCgroup) && n != w.root:
			w.remove(n)
		case errors.Is(err, unix.ENOSPC):
			return
		}
	}
}

// resync watches what is there now, silently, and nothing else.
func (w *Watcher) resync() {
	old, oldFiles, emit := w.nodes, w.files, w.emit
	w.emit = nil
	_ = w.watchAll() // kubepods is gone, or counted as unwatched
	w.release(old)
	for wd := range old {
		if w.nodes[wd] == nil {
			w.detach(wd)
		}
	}
	for wd := range oldFiles {
		if _, ok := w.files[wd]; !ok {
			w.detach(wd)
		}
	}
	w.retry()
	w.emit = emit
}

// watchAll begins anew from kubepods. A cgroup that has a watch keeps its
// descriptor: the kernel knows it by the inode.
func (w *Watcher) watchAll() error {
	w.root = &node{cgroup: w.tree.Layout.Root}
	w.nodes, w.files = map[int32]*node{}, map[int32]watchedFile{}
	clear(w.unwatched)
	err := w.watch(w.root)
	if err != nil && !errors.Is(err, errNoCgroup) {
		w.unwatched[w.root] = struct{}{}
	}
	return err
}
