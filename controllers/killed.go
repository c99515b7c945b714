package controllers

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"path"
	"strings"
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
	"github.com/memqos/memqos/qos"
)

const (
	// settle is how long after a kill is noticed the counters are compared: the
	// kernel counts oom in one cgroup before oom_kill in another.
	settle = time.Second
	// reported is how long a kill whose counters went with the cgroup waits for the
	// pod's status to tell of it: a node that ran out of memory has a slow kubelet.
	reported = 2 * time.Minute
	// idle is how long nothing is looked at where nothing is noticed.
	idle = time.Hour
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
	tallies map[string]*tally    // by cgroup
	named   map[string]time.Time // containers of which is told, by id, and when
	dirty   map[string]bool      // cgroups whose memory.events has changed
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
	told         uint64    // how many of the kills since base are
}

// untold is how many kills are not explained yet.
func (t *tally) untold() uint64 {
	n := t.recent.Since(t.base).Total.OOMKill
	return n - min(n, t.told)
}

// begin counts anew from here.
func (t *tally) begin() { t.base, t.killedAt, t.told = t.recent, time.Time{}, 0 }

func newKills(pods client.Reader, s *surveyor, a *announcer, m *metrics.Metrics, log logr.Logger) *kills {
	return &kills{
		pods: pods, surveyor: s, announce: a, metrics: m, log: log,
		tallies: map[string]*tally{}, named: map[string]time.Time{}, dirty: map[string]bool{}, wake: make(chan struct{}, 1),
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
		wait := idle
		if site := k.surveyor.site.Load(); site != nil {
			k.count(site.tree, time.Now())
			wait = k.explain(ctx, site, time.Now())
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

// explain tells of the kills that have settled. It returns when to look again.
func (k *kills) explain(ctx context.Context, site *site, now time.Time) (again time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	// What one OOM killer took, of a pod or of several, is told at once, by the same
	// counters: those noticed a moment later too.
	var containers []string
	again = idle
	settled := false
	for dir, t := range k.tallies {
		if t.container != "" && !t.killedAt.IsZero() {
			containers = append(containers, dir)
			settled = settled || now.Sub(t.killedAt) >= settle
		}
	}
	switch {
	case settled:
		k.explainContainers(ctx, site, containers)
	case len(containers) > 0:
		again = settle / 4
	}
	// The counters of a pod include what was told: what is left went with its container.
	for dir, t := range k.tallies {
		if t.container == "" && t.request.Name != "" && !t.killedAt.IsZero() {
			again = min(again, k.explainGone(ctx, site, dir, t, now))
		}
	}
	return min(again, k.explainVanished(ctx, site, now))
}

// explainContainers tells of kills that the containers' own counters have kept.
func (k *kills) explainContainers(ctx context.Context, site *site, dirs []string) {
	for _, dir := range dirs {
		t := k.tallies[dir]
		k.named[t.id] = time.Now()
		k.tell(ctx, site, path.Dir(path.Dir(dir)), path.Dir(dir), t, nil, nil)
	}
	for _, dir := range dirs {
		k.told(site, dir, k.tallies[dir].untold())
	}
}

// explainGone tells of a kill that only the pod's counters have kept: the
// container's went with its cgroup. It returns when to look again.
func (k *kills) explainGone(ctx context.Context, site *site, dir string, t *tally, now time.Time) (again time.Duration) {
	if now.Sub(t.killedAt) < settle {
		return settle / 4
	}
	var pod corev1.Pod
	if err := k.pods.Get(ctx, t.request.NamespacedName, &pod); err != nil {
		t.begin() // those above it have still counted it
		return idle
	}
	ends := k.ends(&pod, t.killedAt)
	switch {
	case len(ends) == 0 && now.Sub(t.killedAt) <= reported:
		return 2 * settle
	case len(ends) == 0: // it may have been a child, whose parent ended by itself
		k.tell(ctx, site, path.Dir(dir), dir, &tally{request: t.request}, &pod, nil)
	}
	for _, s := range ends {
		k.named[endID(s)] = now
		k.tell(ctx, site, path.Dir(dir), dir, k.of(t.request, s.Name), &pod, s)
	}
	k.told(site, dir, t.untold())
	return idle
}

// explainVanished tells of kills of which only the cgroups above the pods have kept
// count: container and pod were gone before they were looked at, as on a node without
// memory, whose agent gets none either. The pods' status says whose they were; where
// none does, the event is the Node's. It returns when to look again.
func (k *kills) explainVanished(ctx context.Context, site *site, now time.Time) (again time.Duration) {
	root := k.tallies[site.tree.Layout.Root]
	if root == nil || root.killedAt.IsZero() {
		return idle
	}
	known := uint64(0) // to be told by what is beneath
	for _, t := range k.tallies {
		if t.container == "" && t.request.Name != "" && !t.killedAt.IsZero() {
			known += t.untold()
		}
	}
	if root.untold() <= known {
		return idle
	}
	if now.Sub(root.killedAt) < settle {
		return settle / 4
	}
	var pods corev1.PodList
	if err := k.pods.List(ctx, &pods); err != nil {
		return 2 * settle
	}
	for i := range pods.Items {
		pod := &pods.Items[i]
		request := ctrl.Request{NamespacedName: client.ObjectKeyFromObject(pod)}
		for _, s := range k.ends(pod, root.killedAt) {
			if root.untold() <= known {
				return idle
			}
			class := site.tree.Layout.QOS(qos.Class(pod))
			k.named[endID(s)] = now
			if k.tell(ctx, site, class, "", k.of(request, s.Name), pod, s) {
				k.told(site, class, 1)
			}
		}
	}
	if now.Sub(root.killedAt) <= reported {
		return 2 * settle
	}
	for _, class := range []corev1.PodQOSClass{corev1.PodQOSBestEffort, corev1.PodQOSBurstable, corev1.PodQOSGuaranteed} {
		dir := site.tree.Layout.QOS(class)
		if t := k.tallies[dir]; t != nil && t.untold() > 0 {
			k.tell(ctx, site, dir, "", &tally{container: string(class)}, nil, nil)
			k.told(site, dir, t.untold())
		}
	}
	root.begin()
	return idle
}

// of returns what was counted of a container, without counters if that is not known.
func (k *kills) of(request ctrl.Request, container string) *tally {
	found := &tally{request: request, container: container}
	for _, t := range k.tallies {
		if t.container == container && t.request == request {
			found.values, found.usage = t.values, t.usage
		}
	}
	return found
}

// ends returns the containers of a pod that were killed about when a kill was noticed,
// or since, and of which is not told yet.
func (k *kills) ends(pod *corev1.Pod, killedAt time.Time) []*corev1.ContainerStatus {
	var ends []*corev1.ContainerStatus
	for _, statuses := range [][]corev1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses, pod.Status.EphemeralContainerStatuses} {
		for i := range statuses {
			end := end(&statuses[i])
			if end == nil || end.FinishedAt.Time.Before(killedAt.Add(-2*settle).Truncate(time.Second)) {
				continue
			}
			if _, named := k.named[endID(&statuses[i])]; named {
				continue
			}
			// Who evicts or deletes a pod sends it SIGKILL too.
			sent := pod.Status.Reason == "Evicted" || pod.DeletionTimestamp != nil
			if end.Reason == "OOMKilled" || end.ExitCode == 137 && !sent {
				ends = append(ends, &statuses[i])
			}
		}
	}
	return ends
}

// end returns how a container ended last, nil if it never did.
func end(s *corev1.ContainerStatus) *corev1.ContainerStateTerminated {
	return cmp.Or(s.State.Terminated, s.LastTerminationState.Terminated)
}

// endID returns the id of the container that ended last.
func endID(s *corev1.ContainerStatus) string {
	_, id, _ := strings.Cut(cmp.Or(end(s).ContainerID, s.ContainerID), "://")
	return id
}

// told takes in that n kills in a cgroup are explained, for what is above it too.
// Where none is left, counting begins anew.
func (k *kills) told(site *site, dir string, n uint64) {
	for ; len(dir) >= len(site.tree.Layout.Root); dir = path.Dir(dir) {
		t := k.tallies[dir]
		if t == nil {
			continue
		}
		if t.told += n; t.untold() == 0 {
			t.begin()
		}
	}
}

// tell explains one kill, and reports whether it was one. podDir is empty if the pod's
// cgroup is gone, pod nil if it is to be found; status is the container's if its
// counters are gone.
func (k *kills) tell(ctx context.Context, site *site, class, podDir string, t *tally, pod *corev1.Pod, status *corev1.ContainerStatus) bool {
	o := oom.Observation{Usage: t.usage, Values: t.values, Status: status}
	if t.inode != 0 {
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
	if class != site.tree.Layout.Root {
		o.QOS, o.QOSMax = rise(class)
	}
	o.Kubepods, o.KubepodsMax = rise(site.tree.Layout.Root)
	v, ok := oom.Explain(o)
	if !ok {
		return false
	}
	k.metrics.OOM(string(v.Cause))
	reason := "OutOfMemory" + string(v.Cause)
	if t.request.Name == "" {
		note := fmt.Sprintf("a container of a %s pod that is not known any more: %s", t.container, v.Message)
		k.log.Info("out of memory", "class", t.container, "cause", string(v.Cause), "detail", note)
		k.announce.node(corev1.EventTypeWarning, reason, "Explain", note)
		return true
	}
	k.history.killed(t.request, t.container, v)
	if pod == nil {
		pod = &corev1.Pod{}
		if err := k.pods.Get(ctx, t.request.NamespacedName, pod); err != nil {
			return true // it is gone: there is nothing to hang an event on
		}
	}
	k.log.Info("out of memory", "namespace", pod.Namespace, "pod", pod.Name, "container", t.container, "cause", string(v.Cause), "detail", v.Message)
	k.announce.always(pod, corev1.EventTypeWarning, reason, "Explain", subject(t.container)+": "+v.Message)
	return true
}

// tidy drops cgroups that are gone, once what was counted of them is told.
func (k *kills) tidy(tree *cgroup.Tree) {
	k.mu.Lock()
	defer k.mu.Unlock()
	maps.DeleteFunc(k.tallies, func(dir string, t *tally) bool { return t.killedAt.IsZero() && !tree.Is(dir, t.inode) })
	maps.DeleteFunc(k.named, func(_ string, at time.Time) bool { return time.Since(at) > 2*reported })
}
