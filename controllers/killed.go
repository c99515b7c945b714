package controllers

import (
	"context"
	"maps"
	"path"
	"slices"
	"sync"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/memqos/memqos/cgroup"
	"github.com/memqos/memqos/memory"
	"github.com/memqos/memqos/metrics"
	"github.com/memqos/memqos/oom"
)

const (
	// settle is how long after a kill is noticed the counters are compared: the
	// kernel counts oom in one cgroup before oom_kill in another.
	settle = time.Second
	// reported is how long a kill whose counters went with the cgroup waits for the
	// pod's status to tell of it: a node that ran out of memory has a slow kubelet.
	reported = 2 * time.Minute
)

// kills tells why containers were killed for memory. It compares the kernel's
// counters of a container and of what is above it, before and after.
type kills struct {
	pods     client.Reader
	surveyor *surveyor
	announce *announcer
	metrics  *metrics.Metrics
	log      logr.Logger
	history  *history

	mu      sync.Mutex
	tallies map[string]*tally // by cgroup
	dirty   map[string]bool   // cgroups whose memory.events has changed
	wake    chan struct{}
}

// tally is what was counted of one cgroup.
type tally struct {
	inode     uint64
	request   ctrl.Request // of the pod
	container string       // empty for a pod, a class and kubepods
	id        string       // of the container
	values    memory.Values
	usage     *memory.Value
	// base is what the counters were settle ago or before, recent what they were
	// when last read.
	base, recent oom.Counters
	recentAt     time.Time
	killedAt     time.Time // when a kill was noticed that is not explained yet
	// Of a pod: the containers of which is told already, and how many kills of those
	// since base that are.
	named []string
	told  uint64
}

func newKills(pods client.Reader, s *surveyor, a *announcer, m *metrics.Metrics, log logr.Logger) *kills {
	return &kills{
		pods: pods, surveyor: s, announce: a, metrics: m, log: log,
		tallies: map[string]*tally{}, dirty: map[string]bool{}, wake: make(chan struct{}, 1),
	}
}

// follow begins to count what happens to cgroups.
func (k *kills) follow(request ctrl.Request, cgroups []seen) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for i := range cgroups {
		s := &cgroups[i]
		if path.Base(s.Cgroup.Cgroup) == cgroup.CrunChild {
			continue // the scope counts what happens in it
		}
		t := k.tallies[s.Cgroup.Cgroup]
		if t == nil || t.inode != s.dir.Inode {
			total, local, err := s.dir.Events()
			if err != nil {
				continue // gone, or without counters: nothing can be told of it
			}
			t = &tally{inode: s.dir.Inode, base: oom.Counters{Total: total, Local: local}, recent: oom.Counters{Total: total, Local: local}}
			k.tallies[s.Cgroup.Cgroup] = t
		}
		t.request, t.container, t.values = request, s.Container, s.Values
		if site := k.surveyor.site.Load(); site != nil && s.Container != "" {
			t.id, _ = cgroup.ContainerID(site.tree.Layout.Driver, path.Base(s.Cgroup.Cgroup))
		}
	}
}

// counted is told that memory.events of a cgroup has changed.
func (k *kills) counted(dir string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.tallies[dir] == nil {
		return
	}
	k.dirty[dir] = true
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// run counts until the context ends.
func (k *kills) run(ctx context.Context) {
	for {
		wait := time.Hour
		if site := k.surveyor.site.Load(); site != nil {
			k.count(site.tree, time.Now())
			if k.explain(ctx, site, time.Now()) {
				wait = settle / 4
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-k.wake:
		case <-time.After(wait):
		}
	}
}

// count reads the counters of what has changed.
func (k *kills) count(tree *cgroup.Tree, now time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for dir := range k.dirty {
		if t := k.tallies[dir]; t != nil {
			t.read(tree, dir, now)
		}
	}
	clear(k.dirty)
}

// read takes the counters in.
func (t *tally) read(tree *cgroup.Tree, dir string, now time.Time) {
	d, err := tree.Open(dir)
	if err != nil {
		return // what was last read stays
	}
	defer d.Close()
	if d.Inode != t.inode {
		return
	}
	total, local, err := d.Events()
	if err != nil {
		return
	}
	if t.killedAt.IsZero() && now.Sub(t.recentAt) >= 2*settle {
		t.base = t.recent
	}
	if t.killedAt.IsZero() && total.OOMKill > t.base.Total.OOMKill {
		t.killedAt = now
		if usage, err := d.Usage(); err == nil {
			t.usage = &usage
		}
	}
	t.recent, t.recentAt = oom.Counters{Total: total, Local: local}, now
}

// explain tells of the kills that have settled. It reports whether some have not.
func (k *kills) explain(ctx context.Context, site *site, now time.Time) (more bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	// What one OOM killer took, of a pod or of several, is told at once, by the same
	// counters: those noticed a moment later too.
	var containers []string
	settled := false
	for dir, t := range k.tallies {
		if t.container != "" && !t.killedAt.IsZero() {
			containers = append(containers, dir)
			settled = settled || now.Sub(t.killedAt) >= settle
		}
	}
	if more = len(containers) > 0 && !settled; settled {
		for _, dir := range containers {
			k.tell(ctx, site, dir, k.tallies[dir], nil)
		}
		k.toldContainers(site, containers)
	}
	// The pods' counters include what was told: what is left went with its cgroup.
	for dir, t := range k.tallies {
		switch {
		case t.killedAt.IsZero(), t.request.Name == "", t.container != "":
		case now.Sub(t.killedAt) < settle:
			more = true
		default:
			more = k.explainGone(ctx, site, dir, t, now) || more
		}
	}
	return more
}

// toldContainers counts anew from here in containers, and above them unless their pods'
// counters tell of more: of containers that went with their cgroups, or are to come.
func (k *kills) toldContainers(site *site, dirs []string) {
	for _, dir := range dirs {
		t := k.tallies[dir]
		if p := k.tallies[path.Dir(dir)]; p != nil {
			p.named = append(p.named, t.container)
			p.told += t.recent.Since(t.base).Total.OOMKill
		}
		t.begin()
	}
	for _, dir := range dirs {
		pod := path.Dir(dir)
		if p := k.tallies[pod]; p == nil || p.recent.Since(p.base).Total.OOMKill <= p.told {
			k.toldPod(site, pod)
		}
	}
}

// toldPod counts anew from here, in a pod and above it.
func (k *kills) toldPod(site *site, pod string) {
	for _, dir := range []string{pod, path.Dir(pod), site.tree.Layout.Root} {
		if t := k.tallies[dir]; t != nil {
			t.begin()
		}
	}
}

// begin counts anew from here.
func (t *tally) begin() { t.base, t.killedAt, t.named, t.told = t.recent, time.Time{}, nil, 0 }

// tell explains one kill. status is the container's if its counters are gone.
func (k *kills) tell(ctx context.Context, site *site, dir string, t *tally, status *corev1.ContainerStatus) {
	podDir := dir
	if t.container != "" {
		podDir = path.Dir(dir)
	}
	above := path.Dir(podDir)
	o := oom.Observation{Usage: t.usage, Values: t.values, Status: status}
	if status == nil {
		o.Container = t.recent.Since(t.base)
	}
	rise := func(dir string) (*oom.Counters, *memory.Value) {
		a := k.tallies[dir]
		if a == nil {
			return nil, nil
		}
		a.read(site.tree, dir, time.Now())
		limit, err := site.tree.Value(dir, memory.Max)
		if err != nil {
			return a.recent.Since(a.base), nil
		}
		return a.recent.Since(a.base), &limit
	}
	o.Pod, o.PodMax = rise(podDir)
	if above != site.tree.Layout.Root {
		o.QOS, o.QOSMax = rise(above)
	}
	o.Kubepods, o.KubepodsMax = rise(site.tree.Layout.Root)
	v, ok := oom.Explain(o)
	if !ok {
		return
	}
	k.metrics.OOM(string(v.Cause))
	container := t.container
	if status != nil {
		container = status.Name
	}
	k.history.killed(t.request, container, v)
	var pod corev1.Pod
	if err := k.pods.Get(ctx, t.request.NamespacedName, &pod); err != nil {
		return // it is gone: there is nothing to hang an event on
	}
	k.log.Info("out of memory", "namespace", pod.Namespace, "pod", pod.Name, "container", container, "cause", string(v.Cause), "detail", v.Message)
	k.announce.always(&pod, corev1.EventTypeWarning, "OutOfMemory"+string(v.Cause), "Explain", subject(container)+": "+v.Message)
}

// explainGone tells of a kill that only the pod's counters have kept: the
// container's went with its cgroup. It reports whether that is still to come.
func (k *kills) explainGone(ctx context.Context, site *site, dir string, t *tally, now time.Time) (more bool) {
	var pod corev1.Pod
	if err := k.pods.Get(ctx, t.request.NamespacedName, &pod); err != nil {
		t.begin()
		return false
	}
	for i := range pod.Status.ContainerStatuses {
		s := &pod.Status.ContainerStatuses[i]
		if slices.Contains(t.named, s.Name) {
			continue
		}
		for _, end := range []*corev1.ContainerStateTerminated{s.State.Terminated, s.LastTerminationState.Terminated} {
			if end == nil || end.FinishedAt.Time.Before(t.killedAt.Add(-2*settle).Truncate(time.Second)) {
				continue
			}
			for _, c := range k.tallies {
				if c.container == s.Name && c.request == t.request {
					t.values = c.values
				}
			}
			k.tell(ctx, site, dir, t, s)
			k.toldPod(site, dir)
			return false
		}
	}
	if now.Sub(t.killedAt) > reported {
		t.begin()
		return false
	}
	return true
}

// tidy drops cgroups that are gone, once what was counted of them is told.
func (k *kills) tidy(tree *cgroup.Tree) {
	k.mu.Lock()
	defer k.mu.Unlock()
	maps.DeleteFunc(k.tallies, func(dir string, t *tally) bool { return t.killedAt.IsZero() && !tree.Is(dir, t.inode) })
}
