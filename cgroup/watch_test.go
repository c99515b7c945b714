package cgroup

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/memqos/memqos/cgroup/cgrouptest"
	"github.com/memqos/memqos/config"
	"github.com/memqos/memqos/memory"
)

const (
	watchedPod       = "kubepods/burstable/pod" + uid
	watchedContainer = watchedPod + "/" + id
)

// nth returns a container id.
func nth(i int) string { return fmt.Sprintf("%064x", i) }

// follower collects what a Watcher that runs reports.
type follower struct {
	*Watcher
	t      *testing.T
	events chan Event
	done   chan error
}

// follow runs a Watcher until the test ends.
func follow(t *testing.T, w *Watcher) *follower {
	t.Helper()
	f := &follower{Watcher: w, t: t, events: make(chan Event, 1<<16), done: make(chan error, 1)}
	ctx, cancel := context.WithCancel(context.Background())
	go func() { f.done <- w.Run(ctx, func(e Event) { f.events <- e }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-f.done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return f
}

func watch(t *testing.T, tree *Tree) *Watcher {
	t.Helper()
	w, err := tree.Watch()
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// until returns the events up to one, that one included.
func (f *follower) until(want Event) []Event {
	f.t.Helper()
	var got []Event
	timeout := time.After(30 * time.Second)
	for {
		select {
		case e := <-f.events:
			if got = append(got, e); e == want {
				return got
			}
		case <-timeout:
			f.t.Fatalf("no %v, but %v", want, got)
		}
	}
}

// settle returns the events up to now: up to that of a write to kubepods.
func (f *follower) settle(dir string) []Event {
	f.t.Helper()
	cgrouptest.Write(f.t, filepath.Join(dir, "kubepods", string(memory.Low)), "0")
	got := f.until(Event{Modified, "kubepods", memory.Low})
	return got[:len(got)-1]
}

func mkdir(t *testing.T, elem ...string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(elem...), 0o755); err != nil {
		t.Fatal(err)
	}
}

// eventually waits for what the events tell nothing of.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("still not: %s", what)
		}
	}
}

// What is watched in a tree, for both drivers, and what is not.
func TestWatchScope(t *testing.T) {
	for _, tc := range []struct {
		driver                config.CgroupDriver
		watched, unreportable []string
	}{
		{
			config.Cgroupfs,
			[]string{
				"kubepods", "kubepods/burstable", "kubepods/besteffort", "kubepods/pod" + uid, "kubepods/pod" + uid + "/" + id,
				watchedPod, watchedContainer, watchedPod + "/crio-" + nth(1), watchedContainer + "/container",
			},
			[]string{
				"system", "kubepods/other", "kubepods/burstable/other", watchedPod + "/crio-conmon-" + id, watchedPod + "/other",
				watchedContainer + "/init.scope", watchedContainer + "/container/container", watchedContainer + "/container/" + id,
				"kubepods/burstable/pod" + uid + "/pod" + uid,
			},
		},
		{
			config.Systemd,
			[]string{
				"kubepods.slice", "kubepods.slice/kubepods-burstable.slice",
				"kubepods.slice/kubepods-pod6a1f.slice", "kubepods.slice/kubepods-pod6a1f.slice/cri-containerd-" + id + ".scope",
				"kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod6a1f.slice",
				"kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod6a1f.slice/crio-" + id + ".scope",
				"kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod6a1f.slice/crio-" + id + ".scope/container",
			},
			[]string{
				"system.slice", "kubepods.slice/kubepods-burstable.slice/kubepods-besteffort-pod6a1f.slice", "kubepods.slice/pod6a1f",
				"kubepods.slice/kubepods-pod6a1f.slice/crio-conmon-" + id + ".scope",
				"kubepods.slice/kubepods-pod6a1f.slice/cri-containerd-" + id + ".scope/system.slice",
			},
		},
	} {
		t.Run(string(tc.driver), func(t *testing.T) {
			all := slices.Concat(tc.watched, tc.unreportable)
			tree, dir := fixture(t, tc.driver, strings.Join(all, "\n"))
			f := follow(t, watch(t, tree))
			if f.Watches() != len(tc.watched) || f.Unwatched() != 0 {
				t.Errorf("%d watches, %d unwatched, want %d and 0", f.Watches(), f.Unwatched(), len(tc.watched))
			}
			var want []Event
			for _, cgroup := range append(all[len(tc.watched):], tc.watched...) {
				cgrouptest.Write(t, filepath.Join(dir, cgroup, string(MemoryEvents)), "oom_kill 1")
				if slices.Contains(tc.watched, cgroup) {
					want = append(want, Event{Modified, cgroup, MemoryEvents})
				}
			}
			got := slices.Compact(f.until(want[len(want)-1])) // a write to a fixture truncates first
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestWatchFiles(t *testing.T) {
	tree, dir := fixture(t, config.Cgroupfs, watchedContainer)
	container := filepath.Join(dir, watchedContainer)
	others := []string{"cgroup.procs", "cgroup.subtree_control", "cpu.weight", "memory.current", "memory.swap.max", "memory.oom.group", "memory.events.local", "memory.minx", "memory.mi"}
	for _, file := range others {
		cgrouptest.Write(t, filepath.Join(container, file), "0")
	}
	f := follow(t, watch(t, tree))
	var want []Event
	for _, file := range append([]memory.File{MemoryEvents}, memory.Files...) {
		for _, other := range others {
			cgrouptest.Write(t, filepath.Join(container, other), "1")
		}
		cgrouptest.Write(t, filepath.Join(container, string(file)), "0")
		want = append(want, Event{Modified, watchedContainer, file})
	}
	got := slices.Compact(f.until(want[len(want)-1]))
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// Of a class, whose cpu.weight is written just before its memory.min, the kernel tells of
// nothing but what is reported: whoever waits is not woken for the rest.
func TestWatchFilesOfClass(t *testing.T) {
	const class, bestEffort, other = "kubepods/burstable", "kubepods/besteffort", "cpu.weight"
	tree, dir := fixture(t, config.Cgroupfs, class+"\n"+bestEffort+"\n"+watchedContainer)
	cgrouptest.Write(t, filepath.Join(dir, class, other), "0")
	w := watch(t, tree)
	queued := func() (n int) {
		if err := w.control(func(inotify int) (err error) {
			n, err = unix.IoctlGetInt(inotify, unix.TIOCINQ) // FIONREAD
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return n
	}
	cgrouptest.Write(t, filepath.Join(dir, class, other), "1")
	cgrouptest.Write(t, filepath.Join(dir, bestEffort, string(memory.Min)), "0") // nothing is wanted of it
	if n := queued(); n != 0 {
		t.Errorf("%d bytes are told of %s, or of %s", n, other, bestEffort)
	}
	f := follow(t, w)
	reported := func() {
		t.Helper()
		for _, file := range append([]memory.File{MemoryEvents}, memory.Files...) {
			cgrouptest.Write(t, filepath.Join(dir, class, string(file)), "0")
			f.until(Event{Modified, class, file})
		}
	}
	reported()
	// Cgroups that are made and removed are told of as ever.
	mkdir(t, dir, class, "podnew")
	f.until(Event{Created, class + "/podnew", ""})
	// A class that is made anew is watched anew, and nothing is left of the old one: up to
	// 6.12 the kernel keeps its watches, as here, where the files are open.
	for _, file := range reportedFiles {
		held, err := os.Open(filepath.Join(dir, class, string(file)))
		if err != nil {
			t.Fatal(err)
		}
		defer held.Close() //nolint:errcheck // read only
	}
	if err := os.RemoveAll(filepath.Join(dir, class)); err != nil {
		t.Fatal(err)
	}
	f.until(Event{Removed, class, ""})
	mkdir(t, dir, class)
	f.until(Event{Created, class, ""})
	reported() // by its directory: its files came later
	// kubepods, the new class, BestEffort and its memory.events.
	eventually(t, "four watches", func() bool { return inKernel(t, w) == 4 })
}

// inKernel is the number of watches that the kernel has of a Watcher.
func inKernel(t *testing.T, w *Watcher) (n int) {
	t.Helper()
	if err := w.control(func(inotify int) error {
		data, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", inotify))
		n = strings.Count(string(data), "inotify wd:")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return n
}

// Reading, which memqos does itself, is no event.
func TestWatchReading(t *testing.T) {
	tree, dir := fixture(t, config.Cgroupfs, watchedContainer)
	f := follow(t, watch(t, tree))
	if _, err := tree.Values(watchedContainer); err != nil {
		t.Fatal(err)
	}
	if _, err := tree.Children(watchedPod); err != nil {
		t.Fatal(err)
	}
	if got := f.settle(dir); len(got) != 0 {
		t.Errorf("got %v", got)
	}
}

// Cgroups that are made faster than their parents' watches, as by mkdir -p.
func TestWatchCreated(t *testing.T) {
	tree, dir := fixture(t, config.Cgroupfs, "kubepods")
	f := follow(t, watch(t, tree))
	const pods = 200
	want := map[Event]bool{{Created, "kubepods/burstable", ""}: true}
	for i := range pods {
		pod := "kubepods/burstable/pod" + strconv.Itoa(i)
		for _, cgroup := range []string{pod, pod + "/" + id, pod + "/" + id + "/" + CrunChild} {
			want[Event{Created, cgroup, ""}] = true
		}
		mkdir(t, dir, pod, id, CrunChild)
		mkdir(t, dir, pod, "other", CrunChild)
	}
	for _, e := range f.settle(dir) {
		if !want[e] {
			t.Errorf("got %v, unasked for or twice", e)
		}
		delete(want, e)
	}
	if len(want) > 0 {
		t.Errorf("missing: %v", want)
	}
	eventually(t, "all watched", func() bool { return f.Watches() == 2+3*pods })
	// Each is watched for real.
	for i := range pods {
		pod := "kubepods/burstable/pod" + strconv.Itoa(i)
		cgrouptest.Write(t, filepath.Join(dir, pod, id, CrunChild, string(memory.Min)), "0")
		f.until(Event{Modified, pod + "/" + id + "/" + CrunChild, memory.Min})
	}
}

func TestWatchRemoved(t *testing.T) {
	tree, dir := fixture(t, config.Cgroupfs, watchedContainer+"\n"+watchedContainer+"/"+CrunChild+"\nkubepods/besteffort")
	f := follow(t, watch(t, tree))
	if err := os.RemoveAll(filepath.Join(dir, watchedPod)); err != nil {
		t.Fatal(err)
	}
	f.until(Event{Removed, watchedContainer + "/" + CrunChild, ""})
	f.until(Event{Removed, watchedContainer, ""})
	f.until(Event{Removed, watchedPod, ""})
	eventually(t, "three watches", func() bool { return f.Watches() == 3 })

	// A cgroup of the same name is another one.
	mkdir(t, dir, watchedContainer)
	f.until(Event{Created, watchedContainer, ""})
	cgrouptest.Write(t, filepath.Join(dir, watchedContainer, string(memory.Min)), "0")
	f.until(Event{Modified, watchedContainer, memory.Min})
	if f.Watches() != 5 {
		t.Errorf("%d watches, want 5", f.Watches())
	}
}

// Up to 6.12 the kernel keeps the watch of a removed cgroup. It does the same for an
// ordinary directory that somebody holds open.
func TestWatchRemovedKept(t *testing.T) {
	tree, dir := fixture(t, config.Cgroupfs, watchedContainer)
	f := follow(t, watch(t, tree))
	kernel := func() int {
		var info []byte
		if err := f.control(func(fd int) (err error) {
			info, err = os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(fd))
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(info), "\ninotify ") // after "pos:"
	}
	if kernel() != 4 {
		t.Fatalf("the kernel has %d watches, want 4", kernel())
	}
	held, err := os.Open(filepath.Join(dir, watchedContainer))
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close() //nolint:errcheck // read only
	if err := os.RemoveAll(filepath.Join(dir, watchedContainer)); err != nil {
		t.Fatal(err)
	}
	f.until(Event{Removed, watchedContainer, ""})
	if kernel() != 3 {
		t.Errorf("the kernel has %d watches, want 3", kernel())
	}
}

// Pods that come and go while they are looked at leave no watch behind.
func TestWatchChurn(t *testing.T) {
	tree, dir := fixture(t, config.Cgroupfs, "kubepods/burstable")
	f := follow(t, watch(t, tree))
	for i := range 300 {
		pod := filepath.Join(dir, "kubepods/burstable/pod"+strconv.Itoa(i%3))
		mkdir(t, pod, id)
		if err := os.RemoveAll(pod); err != nil {
			t.Fatal(err)
		}
	}
	mkdir(t, dir, watchedContainer)
	f.until(Event{Created, watchedContainer, ""})
	f.settle(dir)
	eventually(t, "four watches", func() bool { return f.Watches() == 4 })
	if len(f.Watcher.root.children["burstable"].children) != 1 {
		t.Errorf("known: %v", f.Watcher.root.children["burstable"].children)
	}
}

func TestWatchFollowsNoLink(t *testing.T) {
	tree, dir := fixture(t, config.Cgroupfs, "kubepods/burstable\nelsewhere\nelsewhere/"+id)
	link := func(name string) {
		t.Helper()
		if err := os.Symlink(filepath.Join(dir, "elsewhere"), filepath.Join(dir, "kubepods/burstable", name)); err != nil {
			t.Fatal(err)
		}
	}
	link("podbefore")
	f := follow(t, watch(t, tree))
	link("podafter")
	cgrouptest.Write(t, filepath.Join(dir, "elsewhere", string(memory.Min)), "4096")
	cgrouptest.Write(t, filepath.Join(dir, "elsewhere", id, string(memory.Min)), "4096")
	if got := f.settle(dir); len(got) != 0 {
		t.Errorf("got %v", got)
	}
	if f.Watches() != 2 {
		t.Errorf("%d watches, want 2", f.Watches())
	}
}

// overflow makes a Watcher that does not run lose events.
func overflow(t *testing.T, dir string) {
	t.Helper()
	data, err := os.ReadFile("/proc/sys/fs/inotify/max_queued_events")
	if err != nil {
		t.Fatal(err)
	}
	limit, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil || limit > 1<<20 {
		t.Skipf("max_queued_events is %q", data)
	}
	// The kernel merges an event with the last one if they are equal.
	for i := range limit + 1 {
		if err := os.Truncate(filepath.Join(dir, "kubepods", string(memory.Files[i%2])), 0); err != nil {
			t.Fatal(err)
		}
	}
}

func TestWatchOverflow(t *testing.T) {
	old, recreated := "kubepods/burstable/podold", "kubepods/burstable/podrecreated"
	tree, dir := fixture(t, config.Cgroupfs, "kubepods/burstable\nkubepods\n"+old+"/"+id+"\n"+recreated+"/"+id)
	w := watch(t, tree)
	overflow(t, dir)
	// None of this is reported.
	for _, cgroup := range []string{old, recreated} {
		if err := os.RemoveAll(filepath.Join(dir, cgroup)); err != nil {
			t.Fatal(err)
		}
	}
	mkdir(t, dir, recreated, id)
	mkdir(t, dir, watchedContainer)

	f := follow(t, w)
	for _, e := range f.until(Event{Kind: Lost}) {
		if e.Kind != Lost && e.Cgroup != "kubepods" {
			t.Errorf("got %v, which was lost", e)
		}
	}
	for _, cgroup := range []string{watchedContainer, recreated + "/" + id} {
		cgrouptest.Write(t, filepath.Join(dir, cgroup, string(memory.High)), "0")
		f.until(Event{Modified, cgroup, memory.High})
	}
	mkdir(t, dir, old, id)
	f.until(Event{Created, old + "/" + id, ""})
	eventually(t, "eight watches", func() bool { return f.Watches() == 8 })
}

// Equal events of one read are reported once.
func TestWatchBatch(t *testing.T) {
	tree, dir := fixture(t, config.Cgroupfs, watchedContainer+"\nkubepods")
	w := watch(t, tree)
	for range 10 {
		for _, cgroup := range []string{watchedContainer, "kubepods"} {
			cgrouptest.Write(t, filepath.Join(dir, cgroup, string(memory.High)), "0")
			cgrouptest.Write(t, filepath.Join(dir, cgroup, "memory.stat"), "0")
			cgrouptest.Write(t, filepath.Join(dir, cgroup, string(MemoryEvents)), "0")
		}
	}
	var got []Event
	w.emit = func(e Event) { got = append(got, e) }
	defer w.Close() //nolint:errcheck // nothing was written
	buf := make([]byte, 1<<20)
	n, err := w.inotify.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // a second batch is reported anew
		got = nil
		w.batch(buf[:n])
		want := []Event{
			{Modified, watchedContainer, memory.High}, {Modified, watchedContainer, MemoryEvents},
			{Modified, "kubepods", memory.High}, {Modified, "kubepods", MemoryEvents},
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
	}
}

func openFiles(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	var files []string
	for _, e := range entries {
		if target, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && !strings.HasPrefix(target, "/proc/") {
			files = append(files, e.Name()+" "+target)
		}
	}
	slices.Sort(files)
	return files
}

// eventsHeld is how many memory.events are open.
func eventsHeld(t *testing.T) (n int) {
	t.Helper()
	for _, f := range openFiles(t) {
		if strings.HasSuffix(f, "/"+string(MemoryEvents)) || strings.HasSuffix(f, "/"+string(MemoryEvents)+" (deleted)") {
			n++
		}
	}
	return n
}

// The kernel tells of memory.events as long as the file is held: that of each cgroup is,
// and of none that is gone.
func TestWatchHoldsEvents(t *testing.T) {
	tree, dir := fixture(t, config.Cgroupfs, watchedContainer+"\nkubepods\nkubepods/burstable/podgone\nkubepods/burstable/podlost")
	for _, cgroup := range []string{"kubepods", watchedContainer, "kubepods/burstable/podgone", "kubepods/burstable/podlost"} {
		cgrouptest.Write(t, filepath.Join(dir, cgroup, string(MemoryEvents)), "oom_kill 0\n")
	}
	f := follow(t, watch(t, tree))
	if got := eventsHeld(t); got != 4 {
		t.Errorf("holds %d, want 4", got)
	}
	if err := os.RemoveAll(filepath.Join(dir, "kubepods/burstable/podgone")); err != nil {
		t.Fatal(err)
	}
	f.until(Event{Removed, "kubepods/burstable/podgone", ""})
	if got := eventsHeld(t); got != 3 {
		t.Errorf("holds %d after one was removed, want 3", got)
	}
	overflow(t, dir)
	if err := os.RemoveAll(filepath.Join(dir, "kubepods/burstable/podlost")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "that of what went unnoticed is closed", func() bool { return eventsHeld(t) == 2 })
}

// However it ends, nothing stays open and no goroutine stays behind.
func TestWatchLeavesNothing(t *testing.T) {
	tree, dir := fixture(t, config.Cgroupfs, watchedContainer)
	if err := watch(t, tree).Close(); err != nil { // the poller's own descriptors are open from here on
		t.Fatal(err)
	}
	for _, cgroup := range []string{"kubepods", watchedContainer} {
		cgrouptest.Write(t, filepath.Join(dir, cgroup, string(MemoryEvents)), "oom_kill 0\n")
	}
	files, goroutines := openFiles(t), runtime.NumGoroutine()
	for name, end := range map[string]func(w *Watcher, cancel func()) error{
		"ctx":         func(_ *Watcher, cancel func()) error { cancel(); return nil },
		"Close":       func(w *Watcher, _ func()) error { return w.Close() },
		"Close twice": func(w *Watcher, _ func()) error { return errors.Join(w.Close(), w.Close()) },
	} {
		for _, running := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, running %v", name, running), func(t *testing.T) {
				ctx, cancel := context.WithCancel(context.Background())
				defer cancel()
				w := watch(t, tree)
				done := make(chan error)
				run := func() { done <- w.Run(ctx, func(Event) {}) }
				if got := eventsHeld(t); got != 2 {
					t.Errorf("holds memory.events of %d cgroups, want 2", got)
				}
				if running {
					go run()
				}
				if err := end(w, cancel); err != nil {
					t.Fatal(err)
				}
				if !running {
					go run()
				}
				if err := <-done; err != nil {
					t.Errorf("Run: %v", err)
				}
				w.Rewatch() // does no harm
				if diff := cmp.Diff(files, openFiles(t)); diff != "" {
					t.Errorf("open files: -want +got:\n%s", diff)
				}
			})
		}
	}
	eventually(t, "as many goroutines as before", func() bool { return runtime.NumGoroutine() <= goroutines })
}

// inUserNamespace runs the test again in a user namespace of its own, where
// inotify's limits can be set without anybody noticing. It reports whether this is
// that run.
func inUserNamespace(t *testing.T) bool {
	t.Helper()
	const env = "MEMQOS_TEST_USERNS"
	if os.Getenv(env) != "" {
		return true
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), env+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		t.Errorf("in a user namespace: %v\n%s", err, out)
	case err != nil:
		t.Skipf("no user namespace: %v", err)
	}
	return false
}

func setLimit(t *testing.T, name string, n int) {
	t.Helper()
	if err := os.WriteFile("/proc/sys/user/"+name, []byte(strconv.Itoa(n)), 0); err != nil {
		t.Fatal(err)
	}
}

func TestWatchLimit(t *testing.T) {
	if !inUserNamespace(t) {
		return
	}
	tree, dir := fixture(t, config.Cgroupfs, watchedContainer)
	setLimit(t, "max_inotify_watches", 4)
	f := follow(t, watch(t, tree))
	counts := func(watched, unwatched int) {
		t.Helper()
		eventually(t, fmt.Sprintf("%d watched, %d unwatched", watched, unwatched), func() bool {
			return f.Watches() == watched && f.Unwatched() == unwatched
		})
	}
	counts(4, 0)
	second, third := "kubepods/burstable/podsecond", "kubepods/burstable/podthird"
	mkdir(t, dir, second)
	f.until(Event{Created, second, ""})
	counts(4, 1)

	// A watch is freed, and the one that was refused gets it.
	if err := os.RemoveAll(filepath.Join(dir, watchedContainer)); err != nil {
		t.Fatal(err)
	}
	f.until(Event{Removed, watchedContainer, ""})
	f.until(Event{Created, second, ""})
	counts(4, 0)
	cgrouptest.Write(t, filepath.Join(dir, second, string(memory.High)), "0")
	f.until(Event{Modified, second, memory.High})

	// Of what is in an unwatched one nothing is known, until it is watched.
	mkdir(t, dir, third, id)
	f.until(Event{Created, third, ""})
	counts(4, 1)
	setLimit(t, "max_inotify_watches", 6)
	f.Rewatch()
	f.until(Event{Created, third, ""})
	f.until(Event{Created, third + "/" + id, ""})
	counts(6, 0)

	// An unwatched one that goes is forgotten.
	mkdir(t, dir, "kubepods/burstable/podfourth", id)
	counts(6, 1)
	if err := os.RemoveAll(filepath.Join(dir, "kubepods/burstable/podfourth")); err != nil {
		t.Fatal(err)
	}
	f.until(Event{Removed, "kubepods/burstable/podfourth", ""})
	counts(6, 0)
}

// Where there are too few watches for the files of kubepods and the classes, their
// directories have to do, and no cgroup goes without.
func TestWatchLimitOfFiles(t *testing.T) {
	if !inUserNamespace(t) {
		return
	}
	tree, dir := fixture(t, config.Cgroupfs, "kubepods\nkubepods/burstable\n"+watchedContainer)
	for limit := 4; limit < 4+2*len(reportedFiles); limit++ {
		setLimit(t, "max_inotify_watches", limit)
		ctx, cancel := context.WithCancel(t.Context())
		f := &follower{Watcher: watch(t, tree), t: t, events: make(chan Event, 1<<16), done: make(chan error, 1)}
		go func() { f.done <- f.Run(ctx, func(e Event) { f.events <- e }) }()
		eventually(t, fmt.Sprintf("with %d watches to be had, four cgroups are watched", limit), func() bool {
			return f.Watches() == 4 && f.Unwatched() == 0 && inKernel(t, f.Watcher) <= limit
		})
		for _, cgroup := range []string{"kubepods", "kubepods/burstable", watchedContainer} {
			cgrouptest.Write(t, filepath.Join(dir, cgroup, string(memory.Min)), "0")
			f.until(Event{Modified, cgroup, memory.Min})
		}
		cancel()
		select {
		case err := <-f.done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(30 * time.Second):
			t.Fatal("it does not end")
		}
	}
}

// Without a single watch it is the caller that polls, and can still hope.
func TestWatchNone(t *testing.T) {
	if !inUserNamespace(t) {
		return
	}
	tree, dir := fixture(t, config.Cgroupfs, "kubepods\n"+watchedContainer)
	setLimit(t, "max_inotify_watches", 0)
	w := watch(t, tree)
	if w.Watches() != 0 || w.Unwatched() != 1 {
		t.Errorf("%d watched, %d unwatched, want 0 and 1", w.Watches(), w.Unwatched())
	}
	setLimit(t, "max_inotify_watches", 100)
	w.Rewatch() // before Run: kept for it
	f := follow(t, w)
	f.until(Event{Created, watchedContainer, ""})
	f.settle(dir)
	eventually(t, "four watches", func() bool { return f.Watches() == 4 && f.Unwatched() == 0 })
}

func TestWatchNoInstance(t *testing.T) {
	if !inUserNamespace(t) {
		return
	}
	tree, _ := fixture(t, config.Cgroupfs, "kubepods")
	setLimit(t, "max_inotify_instances", 0)
	_, err := tree.Watch()
	var inotifyErr *InotifyError
	if !errors.As(err, &inotifyErr) || !errors.Is(err, unix.EMFILE) {
		t.Errorf("got %v, want an InotifyError of EMFILE", err)
	}
}

// inotifyEvents lays out events of one watch as the kernel does.
func inotifyEvents(wd int32, mask uint32, names ...string) []byte {
	var buf []byte
	for _, name := range names {
		size := (len(name)/16 + 1) * 16
		buf = binary.NativeEndian.AppendUint32(buf, uint32(wd))
		buf = binary.NativeEndian.AppendUint32(buf, mask)
		buf = binary.NativeEndian.AppendUint32(buf, 0)
		buf = binary.NativeEndian.AppendUint32(buf, uint32(size))
		buf = append(buf, name...)
		buf = append(buf, make([]byte, size-len(name))...)
	}
	return buf
}

func BenchmarkWatchBatch(b *testing.B) {
	dir := cgrouptest.Make(b, watchedContainer)
	tree, err := OpenFixture(dir, NewLayout(config.Cgroupfs, "/"))
	if err != nil {
		b.Fatal(err)
	}
	w, err := tree.Watch()
	if err != nil {
		b.Fatal(err)
	}
	defer w.Close() //nolint:errcheck // nothing was written
	events := 0
	w.emit = func(Event) { events++ }
	wd := w.root.children["burstable"].children["pod"+uid].wd
	for name, files := range map[string][]string{
		"dropped":  {"cgroup.procs", "cpu.weight", "cpu.max", "memory.swap.max", "pids.max", "cgroup.subtree_control", "io.weight", "memory.oom.group"},
		"reported": {"memory.min", "memory.low", "memory.high", "memory.max", "memory.events", "memory.high", "memory.events", "memory.events"},
	} {
		b.Run(name, func(b *testing.B) {
			buf := inotifyEvents(wd, unix.IN_MODIFY, files...)
			b.ReportAllocs()
			for b.Loop() {
				w.batch(buf)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(files)), "ns/event")
		})
	}
	if events == 0 {
		b.Error("nothing was reported")
	}
}

// BenchmarkWatch watches a node's whole tree: at start, and after an overflow.
func BenchmarkWatch(b *testing.B) {
	for _, pods := range []int{110, 500} {
		b.Run(strconv.Itoa(pods)+" pods", func(b *testing.B) {
			dir := b.TempDir()
			for i := range pods {
				for c := range 3 { // two containers and a sandbox
					if err := os.MkdirAll(filepath.Join(dir, path.Dir(watchedPod), fmt.Sprintf("pod6a1f3b52-7a3c-4a2c-9a55-%012x", i), nth(c)), 0o755); err != nil {
						b.Fatal(err)
					}
				}
			}
			tree, err := OpenFixture(dir, NewLayout(config.Cgroupfs, "/"))
			if err != nil {
				b.Fatal(err)
			}
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			w, err := tree.Watch()
			if err != nil {
				b.Fatal(err)
			}
			runtime.GC()
			runtime.ReadMemStats(&after)
			b.ReportAllocs()
			for b.Loop() {
				w.resync()
			}
			b.ReportMetric(float64(len(w.nodes)), "watches")
			b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc), "B-held")
			if err := w.Close(); err != nil {
				b.Fatal(err)
			}
		})
	}
}
