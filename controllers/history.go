package controllers

import (
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/memqos/memqos/cgroup"
	"github.com/memqos/memqos/guard"
	"github.com/memqos/memqos/memory"
	"github.com/memqos/memqos/metrics"
	"github.com/memqos/memqos/oom"
	"github.com/memqos/memqos/status"
)

const (
	changesKept = 8  // of a cgroup
	killsKept   = 32 // of the node
	samplesKept = 3  // of a cgroup
	// samplePeriod is the least time between two samples of a cgroup.
	samplePeriod = 30 * time.Second
)

// history remembers for people what happened to cgroups lately, a bounded number of
// things each, and nothing is decided by it. It is for concurrent use; a nil one
// remembers nothing.
type history struct {
	now func() time.Time

	mu      sync.Mutex
	cgroups map[uint64]*past // by inode number
	byPath  map[string]*past
	kills   []status.Kill // the newest last
}

// past is what is remembered of one cgroup.
type past struct {
	cgroup  string
	verdict status.Verdict
	since   time.Time
	changes []status.Change // the newest last
	samples []sample        // likewise
	told    time.Time       // when memory.events first changed after the last sample
	why     string          // the stall guard's last word
}

// sample is what the counters of a cgroup were at a moment.
type sample struct {
	at         time.Time
	high       uint64
	some, full time.Duration
}

func newHistory() *history {
	return &history{now: time.Now, cgroups: map[uint64]*past{}, byPath: map[string]*past{}}
}

// of returns what is remembered of a cgroup, and begins to. h.mu is held.
func (h *history) of(dir *cgroup.Dir) *past {
	p := h.cgroups[dir.Inode]
	if p == nil {
		p = &past{cgroup: dir.Cgroup}
		h.cgroups[dir.Inode], h.byPath[dir.Cgroup] = p, p
	}
	return p
}

// overwritten takes in that somebody else wrote over a value of memqos's.
func (h *history) overwritten(c change, wrote memory.Value, cause metrics.Cause) {
	by := status.ByForeign
	if cause == metrics.Reset {
		by = status.ByReset
	}
	h.changed(c.dir, status.Change{File: c.file, By: by, From: wrote, To: c.from})
}

// wrote takes in that memqos wrote a value.
func (h *history) wrote(dir *cgroup.Dir, file memory.File, from, to memory.Value) {
	h.changed(dir, status.Change{File: file, By: status.ByMemqos, From: from, To: to})
}

// changed adds a change. One that was there before only counts: what the kubelet's
// tick does every minute is not to drive out the rest.
func (h *history) changed(dir *cgroup.Dir, c status.Change) {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.of(dir)
	c.Time, c.Count = h.now(), 1
	i := slices.IndexFunc(p.changes, func(o status.Change) bool {
		return o.File == c.File && o.By == c.By && o.From == c.From && o.To == c.To
	})
	switch {
	case i >= 0:
		c.Count += p.changes[i].Count
		p.changes = slices.Delete(p.changes, i, i+1)
	case len(p.changes) == changesKept:
		p.changes = slices.Delete(p.changes, 0, 1)
	}
	p.changes = append(p.changes, c)
}

// saw takes in how cgroups stand after a reconcile, and their counters if these have
// changed since they were last taken.
func (h *history) saw(cgroups []seen, o outcome, relaxed func(inode uint64) bool) {
	if h == nil {
		return
	}
	verdicts := map[uint64]status.Verdict{}
	for i := range o.left {
		c := &o.left[i]
		v := status.Drifted
		if c.to < c.from && (c.file == memory.Max || c.file == memory.High) && !slices.ContainsFunc(o.contested, func(x change) bool { return x.key() == c.key() }) {
			v = status.Pending // Deferred or Landing
		}
		if verdicts[c.dir.Inode] != status.Drifted {
			verdicts[c.dir.Inode] = v
		}
	}
	for i := range cgroups { // before the lock: relaxed has one of its own, and may wait for this one
		inode := cgroups[i].dir.Inode
		if _, left := verdicts[inode]; !left {
			verdicts[inode] = status.Fulfilled
			if relaxed(inode) {
				verdicts[inode] = status.Relaxed
			}
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	now := h.now()
	for i := range cgroups {
		dir := cgroups[i].dir
		p := h.of(dir)
		p.stands(verdicts[dir.Inode], now)
		if len(p.samples) == 0 || (!p.told.IsZero() && now.Sub(p.samples[len(p.samples)-1].at) >= samplePeriod) {
			p.sample(dir, now)
		}
	}
}

// stands notes a verdict, and since when it holds.
func (p *past) stands(v status.Verdict, now time.Time) {
	if p.verdict != v {
		p.verdict, p.since = v, now
	}
}

// sample takes the counters.
func (p *past) sample(dir *cgroup.Dir, now time.Time) {
	s, ok := sampleOf(dir, now)
	if !ok {
		return
	}
	if len(p.samples) == samplesKept {
		p.samples = slices.Delete(p.samples, 0, 1)
	}
	p.samples, p.told = append(p.samples, s), time.Time{}
}

func sampleOf(dir *cgroup.Dir, now time.Time) (sample, bool) {
	total, _, err := dir.Events()
	if err != nil {
		return sample{}, false // gone, or a fixture without counters
	}
	s := sample{at: now, high: total.High}
	if pressure, err := dir.Pressure(); err == nil && pressure != nil {
		s.some, s.full = pressure.Some, pressure.Full
	}
	return s, true
}

// counted is told that memory.events of a cgroup has changed.
func (h *history) counted(dir string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if p := h.byPath[dir]; p != nil && p.told.IsZero() {
		p.told = h.now()
	}
}

// guarded takes in what the stall guard says of a cgroup.
func (h *history) guarded(dir *cgroup.Dir, d guard.Decision) {
	if h == nil || d.Message == "" {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.of(dir).why = d.Message
}

// killed takes in an out-of-memory kill.
func (h *history) killed(pod ctrl.Request, container string, v oom.Verdict) {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.kills) == killsKept {
		h.kills = slices.Delete(h.kills, 0, 1)
	}
	h.kills = append(h.kills, status.Kill{Time: h.now(), Namespace: pod.Namespace, Pod: pod.Name, Container: container, Cause: string(v.Cause), Message: v.Message})
}

// tidy forgets cgroups that are gone.
func (h *history) tidy(tree *cgroup.Tree) {
	h.mu.Lock()
	defer h.mu.Unlock()
	maps.DeleteFunc(h.cgroups, func(inode uint64, p *past) bool {
		gone := !tree.Is(p.cgroup, inode)
		if gone && h.byPath[p.cgroup] == p {
			delete(h.byPath, p.cgroup)
		}
		return gone
	})
}

// tell adds to a cgroup of a status what is remembered of it.
func (h *history) tell(dir *cgroup.Dir, c *status.Cgroup) {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.cgroups[dir.Inode]
	if p == nil {
		return
	}
	now := h.now()
	p.stands(c.Verdict, now)
	since := p.since
	c.Since = &since
	c.Changes = slices.Clone(p.changes)
	slices.Reverse(c.Changes)
	if c.Relaxed != nil {
		c.Relaxed.Why = p.why
	}
	c.Throttled = p.throttled(dir, now)
}

// throttled compares the counters with those of some time ago.
func (p *past) throttled(dir *cgroup.Dir, now time.Time) *status.Throttling {
	last, ok := sampleOf(dir, now)
	if !ok || len(p.samples) == 0 {
		return nil
	}
	first := p.samples[0]
	for _, s := range p.samples[1:] {
		if now.Sub(s.at) >= samplePeriod {
			first = s
		}
	}
	if last.high <= first.high {
		return nil
	}
	t := &status.Throttling{From: first.at, HighEvents: last.high - first.high, SomeUsec: usecSince(first.some, last.some), FullUsec: usecSince(first.full, last.full)}
	if first == p.samples[len(p.samples)-1] && p.told.After(first.at) {
		t.From = p.told // nothing happened before
	}
	return t
}

func usecSince(before, after time.Duration) uint64 {
	return uint64(max(after-before, 0) / time.Microsecond)
}

// lately returns the kills, the newest first.
func (h *history) lately() []status.Kill {
	if h == nil {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	kills := slices.Clone(h.kills)
	slices.Reverse(kills)
	return kills
}

// relaxations are the latches of the containers that are relaxed, by inode number.
func (g *stallGuard) relaxations() map[uint64]guard.Latch {
	g.mu.Lock()
	defer g.mu.Unlock()
	out := map[uint64]guard.Latch{}
	for inode, l := range g.latches {
		if l.Relaxed() {
			out[inode] = l
		}
	}
	for inode, e := range g.guarded {
		if e.state.Latch.Relaxed() {
			out[inode] = e.state.Latch
		}
	}
	return out
}

// relaxed reports whether a container is relaxed.
func (g *stallGuard) relaxed(inode uint64) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	e := g.guarded[inode]
	return e != nil && e.state.Latch.Relaxed()
}

// sinceBoot turns a CLOCK_MONOTONIC time into one of the calendar.
func sinceBoot(at time.Duration) time.Time {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return time.Time{}
	}
	return time.Now().Add(at - time.Duration(now.Nano()))
}
