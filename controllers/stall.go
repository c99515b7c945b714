package controllers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/memqos/memqos/cgroup"
	"github.com/memqos/memqos/config"
	"github.com/memqos/memqos/guard"
	"github.com/memqos/memqos/memory"
	"github.com/memqos/memqos/metrics"
)

// stallGuard takes the readings that package guard decides by, and lays what it
// decides over the plan. It watches cgroups that have a memory.high; for nothing,
// until memory.events of one changes.
type stallGuard struct {
	surveyor *surveyor
	pass     *pass
	announce *announcer
	metrics  *metrics.Metrics
	log      logr.Logger
	boot     string
	history  *history

	mu      sync.Mutex
	guarded map[uint64]*guarded // by inode number
	byPath  map[string]*guarded
	latches map[uint64]guard.Latch // of the last run, until the cgroup is seen again
	saved   string                 // what the file holds
	wake    chan struct{}
}

// guarded is a cgroup under guard.
type guarded struct {
	inode     uint64
	cgroup    string
	request   ctrl.Request
	pod       *corev1.Pod // for events
	container string
	config    guard.Config
	limits    guard.Limits
	state     guard.Container
	high      memory.Value // that the guard decided on
	due       time.Time    // of the next reading; zero: none
	armed     bool
}

const latchFile = "guard.json"

// latchState is the content of latchFile.
type latchState struct {
	Boot    string                 `json:"boot"`
	Latches map[uint64]guard.Latch `json:"latches"` // by the inode number of the cgroup
}

// loadLatches reads the latches of this boot. Without any there are none: a file
// that cannot be read loses nothing but the memory of stalls.
func loadLatches(dir, boot string) (map[uint64]guard.Latch, error) {
	data, err := os.ReadFile(filepath.Join(dir, latchFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var s latchState
	if err == nil {
		err = json.Unmarshal(data, &s)
	}
	if err != nil || s.Boot != boot {
		return nil, err
	}
	return s.Latches, nil
}

func newStallGuard(s *surveyor, p *pass, a *announcer, m *metrics.Metrics, log logr.Logger, boot string) *stallGuard {
	g := &stallGuard{
		surveyor: s, pass: p, announce: a, metrics: m, log: log, boot: boot,
		guarded: map[uint64]*guarded{}, byPath: map[string]*guarded{}, wake: make(chan struct{}, 1),
	}
	var err error
	if g.latches, err = loadLatches(s.config.Load().StateDir, boot); err != nil {
		log.Error(err, "which containers were relaxed is not known any more")
	}
	return g
}

// overlay takes the cgroups of a pod under guard, and raises memory.high in what
// is wanted of those that are relaxed. on says whether the pod is guarded.
func (g *stallGuard) overlay(pod *corev1.Pod, cgroups []seen, on bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	c := g.surveyor.config.Load()
	for i := range cgroups {
		s := &cgroups[i]
		planned, managed := s.Values[memory.High]
		e := g.guarded[s.dir.Inode]
		if !managed || (planned == memory.Unlimited && e == nil) {
			continue
		}
		if e == nil {
			e = &guarded{inode: s.dir.Inode, cgroup: s.Cgroup.Cgroup, high: planned}
			e.state.Latch = g.latches[s.dir.Inode]
			delete(g.latches, s.dir.Inode)
			if e.state.Latch.Relaxed() {
				e.high, e.due = e.state.Latch.High, time.Now()
				g.poke()
			}
			g.guarded[e.inode], g.byPath[e.cgroup] = e, e
		}
		e.pod, e.request, e.container = pod, ctrl.Request{NamespacedName: client.ObjectKeyFromObject(pod)}, s.Container
		e.config = guardConfig(c, on)
		limit := memory.Unlimited
		if max, ok := s.Values[memory.Max]; ok {
			limit = max
		}
		e.limits = guard.Limits{Planned: planned, Max: limit, PageSize: int64(os.Getpagesize())}
		switch {
		case !e.state.Latch.Relaxed():
			e.high = planned
		case e.high <= planned || !e.config.Enabled:
			e.due = time.Now() // the plan, or that there is a guard, has changed
			g.poke()
		}
		if !e.config.Enabled && !e.due.IsZero() {
			e.due = time.Now() // its last
		}
		if e.high > planned && e.state.Latch.Relaxed() {
			s.Values[memory.High] = e.high
			s.Reason[memory.High] = fmt.Sprintf("raised by the stall guard; %s: %s", planned.Human(), s.Reason[memory.High])
		}
	}
}

func guardConfig(c *config.MemoryQoSConfiguration, on bool) guard.Config {
	return guard.Config{Enabled: on, StallShare: *c.StallGuard.StallShare, Window: c.StallGuard.Window.Duration, Hold: c.StallGuard.Hold.Duration}
}

// counted is told that memory.events of a cgroup has changed.
func (g *stallGuard) counted(dir string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if e := g.byPath[dir]; e != nil && !e.armed && e.config.Enabled {
		e.due = time.Now()
		g.poke()
	}
}

// poll makes a reading of every cgroup due that has none coming: for when the
// kernel does not tell of changes.
func (g *stallGuard) poll() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, e := range g.guarded {
		if !e.armed && e.due.IsZero() && e.config.Enabled {
			e.due = time.Now()
		}
	}
	g.poke()
}

func (g *stallGuard) poke() {
	select {
	case g.wake <- struct{}{}:
	default:
	}
}

// run takes the readings as they become due, until the context ends.
func (g *stallGuard) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-g.wake:
		}
		next := g.readings()
		if next.IsZero() {
			timer.Stop()
			continue
		}
		timer.Reset(max(time.Until(next), time.Millisecond))
	}
}

// readings takes those that are due and returns when the next is.
func (g *stallGuard) readings() (next time.Time) {
	site := g.surveyor.site.Load()
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	var changed bool
	for _, e := range g.guarded {
		if e.due.IsZero() {
			continue
		}
		if !e.due.After(now) {
			e.due, e.armed = time.Time{}, false
			if site != nil {
				changed = g.observe(site.tree, e) || changed
			}
		}
		if !e.due.IsZero() && (next.IsZero() || e.due.Before(next)) {
			next = e.due
		}
	}
	if changed {
		g.save()
	}
	g.measure()
	return next
}

// observe takes one reading and carries out what follows. It reports whether the
// latch has changed.
func (g *stallGuard) observe(tree *cgroup.Tree, e *guarded) (changed bool) {
	dir, err := tree.Open(e.cgroup)
	if err == nil && dir.Inode != e.inode {
		dir.Close()
		err = fs.ErrNotExist
	}
	if cgroup.IsGone(err) {
		return g.drop(e)
	}
	if err != nil {
		g.log.Error(err, "a stall cannot be told")
		return false
	}
	defer dir.Close()
	reading, err := dir.Reading()
	if cgroup.IsGone(err) {
		return g.drop(e)
	}
	if err != nil {
		g.log.Error(err, "a stall cannot be told")
		return false
	}
	before := e.state.Latch
	d := e.state.Observe(e.config, e.limits, reading)
	g.history.guarded(dir, d)
	if e.armed = d.Armed; d.Next > 0 {
		e.due = time.Now().Add(d.Next)
	}
	if d.High != e.high {
		e.high = d.High
		g.pass.enqueue(podController, e.request)
	}
	if d.Message != "" {
		g.log.Info(d.Message, "namespace", e.request.Namespace, "pod", e.request.Name, "container", e.container, "change", string(d.Change))
	}
	if d.Change != guard.Unchanged {
		g.metrics.GuardChanged(string(d.Change))
		kind := corev1.EventTypeNormal
		if d.Change == guard.Relaxed {
			kind = corev1.EventTypeWarning
		}
		g.announce.always(e.pod, e.container, kind, string(d.Change), "Guard", subject(e.container)+": "+d.Message)
	}
	return e.state.Latch != before
}

// drop ends the guard of a cgroup that is gone.
func (g *stallGuard) drop(e *guarded) (changed bool) {
	delete(g.guarded, e.inode)
	if g.byPath[e.cgroup] == e {
		delete(g.byPath, e.cgroup)
	}
	return e.state.Latch != guard.Latch{}
}

// tidy drops cgroups that are gone.
func (g *stallGuard) tidy(tree *cgroup.Tree) {
	g.mu.Lock()
	defer g.mu.Unlock()
	changed := false
	for _, e := range g.guarded {
		if !tree.Is(e.cgroup, e.inode) {
			changed = g.drop(e) || changed
		}
	}
	if changed {
		g.save()
	}
	g.measure()
}

func (g *stallGuard) measure() {
	armed, relaxed := 0, 0
	for _, e := range g.guarded {
		if e.armed {
			armed++
		}
		if e.state.Latch.Relaxed() {
			relaxed++
		}
	}
	g.metrics.Guard(len(g.guarded), armed, relaxed)
}

// save writes the latches, atomically.
func (g *stallGuard) save() {
	s := latchState{Boot: g.boot, Latches: map[uint64]guard.Latch{}}
	for inode, e := range g.guarded {
		if e.state.Latch != (guard.Latch{}) {
			s.Latches[inode] = e.state.Latch
		}
	}
	data, err := json.Marshal(s)
	if err == nil && string(data) == g.saved {
		return
	}
	path := filepath.Join(g.surveyor.config.Load().StateDir, latchFile)
	if err == nil {
		err = os.WriteFile(path+".new", data, 0o600)
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		g.log.Error(err, "which containers are relaxed will not be known after a restart")
		return
	}
	g.saved = string(data)
}
