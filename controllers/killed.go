package controllers

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"path"
	"slices"
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
	// linger is how long what is left of a kill waits, once a container of it is told of:
	// most likely for nothing, as a kill has as many counts as processes.
	linger = 10 * time.Second
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
	uid       string       // likewise
	container string       // empty for a pod, a class and kubepods
	id        string       // of the container
	values    memory.Values
	usage     *memory.Value
	// base is what the counters were settle or more before recent, at baseAt; late is
	// what they were since, and becomes base in turn.
	base, late, recent counts
	baseAt, lateAt     time.Time
	killedAt           time.Time // when a kill was noticed that is not explained yet
	told               uint64    // how many of the kills since base are explained
	toldAt             time.Time // the last of those
	byStatus           bool      // one of those was, by a pod's status alone
	reread             bool      // so was all beneath it, since killedAt
}

// counts are what is used of a cgroup's memory.events and memory.events.local: there are
// thousands of them.
type counts struct{ oom, killed, groups, ownOOM, ownGroups uint32 }

func countsOf(d *cgroup.Dir) (counts, error) {
	all, own, err := d.Events()
	return counts{uint32(all.OOM), uint32(all.OOMKill), uint32(all.OOMGroupKill), uint32(own.OOM), uint32(own.OOMGroupKill)}, err
}

// rise is by how much the counters of a cgroup have risen since base.
func (t *tally) rise() *oom.Counters {
	b, r := &t.base, &t.recent
	return &oom.Counters{
		Total: memory.Events{OOM: uint64(r.oom - b.oom), OOMKill: uint64(r.killed - b.killed), OOMGroupKill: uint64(r.groups - b.groups)},
		Local: memory.Events{OOM: uint64(r.ownOOM - b.ownOOM), OOMGroupKill: uint64(r.ownGroups - b.ownGroups)},
	}
}

// isPod reports whether it is a pod's.
func (t *tally) isPod() bool { return t.request.Name != "" && t.container == "" }

// pending reports whether a kill was noticed that is not explained yet.
func (t *tally) pending() bool { return !t.killedAt.IsZero() }

// untold is how many kills are not explained yet.
func (t *tally) untold() uint64 {
	return less(uint64(t.recent.killed-t.base.killed), t.told)
}

// begin counts anew from here.
func (t *tally) begin() {
	t.base, t.late, t.baseAt = t.recent, t.recent, t.lateAt
	t.usage, t.killedAt, t.told, t.byStatus, t.reread = nil, time.Time{}, 0, false, false
}

// less is n without m, and 0 if there are not so many.
func less(n, m uint64) uint64 { return n - min(n, m) }

func newKills(pods client.Reader, s *surveyor, a *announcer, m *metrics.Metrics, log logr.Logger) *kills {
	return &kills{
		pods: pods, surveyor: s, announce: a, metrics: m, log: log,
		tallies: map[string]*tally{}, named: map[string]time.Time{}, dirty: map[string]bool{}, wake: make(chan struct{}, 1),
	}
}

// follow begins to count what happens to a pod's cgroups.
func (k *kills) follow(tree *cgroup.Tree, request ctrl.Request, cgroups []seen) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for i := range cgroups {
		s := &cgroups[i]
		if path.Base(s.Cgroup.Cgroup) == cgroup.CrunChild {
			continue // the scope counts what happens in it
		}
		if t := k.counting(s.dir); t != nil {
			t.request, t.uid, t.container, t.values = request, s.UID, s.Container, s.Values
			if s.Container != "" {
				t.id, _ = cgroup.ContainerID(tree.Layout.Driver, path.Base(s.Cgroup.Cgroup))
			}
		}
	}
}

// followNode begins to count what happens to kubepods and the classes.
func (k *kills) followNode(tree *cgroup.Tree) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, class := range classes {
		if d, err := tree.Open(tree.Layout.QOS(class)); err == nil {
			k.counting(d)
			d.Close()
		}
	}
}

// classes are innermost first: that of Guaranteed is kubepods.
var classes = []corev1.PodQOSClass{corev1.PodQOSBestEffort, corev1.PodQOSBurstable, corev1.PodQOSGuaranteed}

// counting returns what was counted of a cgroup, from now on if it is new; nil if it
// is gone or has no counters.
func (k *kills) counting(d *cgroup.Dir) *tally {
	t := k.tallies[d.Cgroup]
	if t == nil || t.inode != d.Inode {
		is, err := countsOf(d)
		if err != nil {
			return nil
		}
		now := time.Now()
		t = &tally{inode: d.Inode, base: is, late: is, recent: is, baseAt: now, lateAt: now}
		k.tallies[d.Cgroup] = t
	}
	return t
}

// counted is told that memory.events of a cgroup has changed; lost that any may have.
func (k *kills) counted(dir string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.tallies[dir] == nil {
		return
	}
	k.dirty[dir] = true
	k.awake()
}

func (k *kills) lost() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for dir := range k.tallies {
		k.dirty[dir] = true
	}
	k.awake()
}

func (k *kills) awake() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// run counts until the context ends.
func (k *kills) run(ctx context.Context) {
	due := time.Now()
	for {
		if site := k.surveyor.site.Load(); site != nil {
			now := time.Now()
			if k.count(site.tree, now) {
				due = now
			}
			if !now.Before(due) {
				due = now.Add(k.explain(ctx, site, now))
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-k.wake:
		case <-time.After(time.Until(due)):
		}
	}
}

// count reads the counters of what has changed, and reports whether there was a kill.
func (k *kills) count(tree *cgroup.Tree, now time.Time) (killed bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for dir := range k.dirty {
		if t := k.tallies[dir]; t != nil {
			killed = t.read(tree, dir, now) || killed
		}
	}
	clear(k.dirty)
	return killed
}

// read takes the counters in, and reports whether there was a first kill.
func (t *tally) read(tree *cgroup.Tree, dir string, now time.Time) (killed bool) {
	d, err := tree.Open(dir)
	if err != nil {
		return false // what was last read stays
	}
	defer d.Close()
	if d.Inode != t.inode {
		return false
	}
	is, err := countsOf(d)
	if err != nil {
		return false
	}
	t.recent = is
	if t.pending() {
		return false
	}
	if now.Sub(t.lateAt) >= settle {
		t.base, t.baseAt = t.late, t.lateAt
		t.late, t.lateAt = t.recent, now
	}
	if t.untold() == 0 {
		return false
	}
	t.killedAt = now
	if usage, err := d.Usage(); err == nil {
		t.usage = &usage
	}
	return true
}

// explain tells of the kills that have settled. It returns when to look again.
func (k *kills) explain(ctx context.Context, site *site, now time.Time) (again time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	again = k.explainContainers(ctx, site, now)
	// The counters of a pod include what was told: what is left went with its container.
	for dir, t := range k.tallies {
		if t.isPod() && t.pending() {
			again = min(again, k.explainGone(ctx, site, dir, t, now))
		}
	}
	return min(again, k.explainVanished(ctx, site, now))
}

// explainContainers tells of kills that the containers' own counters have kept. Those of
// one OOM killer are told by the same counters, before any of them begins anew.
func (k *kills) explainContainers(ctx context.Context, site *site, now time.Time) (again time.Duration) {
	again = idle
	var settled []string
	for dir, t := range k.tallies {
		switch {
		case t.container == "" || !t.pending():
		case now.Sub(t.killedAt) < settle:
			again = settle / 4
		default:
			settled = append(settled, dir)
		}
	}
	slices.Sort(settled)
	for _, dir := range settled {
		t := k.tallies[dir]
		t.read(site.tree, dir, now)
		k.named[t.id] = now
		k.tell(ctx, site, path.Dir(path.Dir(dir)), path.Dir(dir), t, nil, nil)
	}
	for _, dir := range settled {
		k.told(site, dir, k.tallies[dir].untold(), now)
	}
	return again
}

// explainGone tells of a kill that only the pod's counters have kept: the
// container's went with its cgroup. It returns when to look again.
func (k *kills) explainGone(ctx context.Context, site *site, dir string, t *tally, now time.Time) (again time.Duration) {
	known := uint64(0) // to be told by its containers
	for beneath, c := range k.tallies {
		if c.pending() && path.Dir(beneath) == dir {
			known += c.untold()
		}
	}
	left := less(t.untold(), known)
	if left == 0 || now.Sub(t.killedAt) < settle {
		return settle / 4
	}
	var pod corev1.Pod
	err := k.pods.Get(ctx, t.request.NamespacedName, &pod)
	switch ends := k.ends(&pod, t); {
	case err != nil || string(pod.UID) != t.uid:
		if t.told > 0 {
			k.told(site, dir, left, now)
		} else {
			t.begin() // those above it have still counted it
		}
	case len(ends) > 0:
		for _, s := range ends[:min(len(ends), int(left))] {
			k.named[endID(s)] = now
			if k.tell(ctx, site, path.Dir(dir), dir, k.of(t.request, s), &pod, s) {
				k.told(site, dir, 1, now)
			}
		}
		return 2 * settle
	case t.told > 0 && now.Sub(t.toldAt) > linger:
		// More processes of containers that are told of, or the sandbox's.
		k.told(site, dir, left, now)
	case t.told == 0 && now.Sub(t.killedAt) > reported:
		// It may have been a child, whose parent ended by itself.
		k.tell(ctx, site, path.Dir(dir), dir, &tally{request: t.request}, &pod, nil)
		k.told(site, dir, left, now)
	default:
		return 2 * settle
	}
	return settle / 4
}

// explainVanished tells of kills of which only the cgroups above the pods have kept
// count: container and pod were gone before they were looked at, as on a node without
// memory, whose agent gets none either. The pods' status says whose they were; where
// none does, the event is the Node's. It returns when to look again.
func (k *kills) explainVanished(ctx context.Context, site *site, now time.Time) (again time.Duration) {
	root := k.tallies[site.tree.Layout.Root]
	switch {
	case root == nil || !root.pending():
		return idle
	case now.Sub(root.killedAt) < settle:
		return settle / 4
	}
	vanished := k.vanished(site)
	if len(vanished) > 0 && !root.reread {
		// Events may have been lost: what is beneath counts first.
		root.reread = true
		for _, dir := range slices.Sorted(maps.Keys(k.tallies)) { // from above
			k.tallies[dir].read(site.tree, dir, now)
		}
		return settle / 4
	}
	if len(vanished) == 0 {
		return 2 * settle
	}
	var pods corev1.PodList
	if err := k.pods.List(ctx, &pods); err != nil {
		return 2 * settle
	}
	for i := range pods.Items {
		pod := &pods.Items[i]
		request := ctrl.Request{NamespacedName: client.ObjectKeyFromObject(pod)}
		class := qos.Class(pod)
		if vanished[class] == 0 || k.counts(site, request) {
			continue
		}
		dir := site.tree.Layout.QOS(class)
		ends := k.ends(pod, root)
		for _, s := range ends[:min(len(ends), int(vanished[class]))] {
			k.named[endID(s)] = now
			if k.tell(ctx, site, dir, "", k.of(request, s), pod, s) {
				k.tallies[dir].byStatus = true
				k.told(site, dir, 1, now)
				vanished[class]--
			}
		}
	}
	if now.Sub(root.killedAt) <= reported {
		return 2 * settle
	}
	for _, class := range classes {
		n := vanished[class]
		if n == 0 {
			continue
		}
		dir := site.tree.Layout.QOS(class)
		t := k.tallies[dir]
		// Of a container that was killed as a group, one process is told of.
		if !t.byStatus || t.recent.groups == t.base.groups {
			k.tell(ctx, site, dir, "", &tally{container: string(class)}, nil, nil)
		}
		k.told(site, dir, n, now)
	}
	return 2 * settle
}

// vanished is how many kills of each class nothing beneath it has counted.
func (k *kills) vanished(site *site) map[corev1.PodQOSClass]uint64 {
	known := map[string]uint64{} // by what is above the pod
	for dir, t := range k.tallies {
		if t.isPod() && t.pending() {
			known[path.Dir(dir)] += t.untold()
		}
	}
	vanished, within := map[corev1.PodQOSClass]uint64{}, uint64(0)
	for _, class := range classes {
		dir := site.tree.Layout.QOS(class)
		t := k.tallies[dir]
		if t == nil {
			continue
		}
		n := t.untold()
		if class == corev1.PodQOSGuaranteed {
			n = less(n, within)
		}
		within += n
		if n = less(n, known[dir]); n > 0 {
			vanished[class] = n
		}
	}
	return vanished
}

// counts reports whether a pod has its cgroup, which counts what happens to it.
func (k *kills) counts(site *site, request ctrl.Request) bool {
	for dir, t := range k.tallies {
		if t.isPod() && t.request == request && site.tree.Is(dir, t.inode) {
			return true
		}
	}
	return false
}

// of returns what is known of a container that ended, but its counters.
func (k *kills) of(request ctrl.Request, s *corev1.ContainerStatus) *tally {
	found := &tally{request: request, container: s.Name}
	for _, t := range k.tallies {
		if t.container != "" && t.id == endID(s) {
			found.values, found.usage = t.values, t.usage
		}
	}
	return found
}

// ends returns the containers of a pod that were killed since a cgroup had not counted
// that yet, and of which is not told. Those come first of which the runtime says why.
func (k *kills) ends(pod *corev1.Pod, t *tally) []*corev1.ContainerStatus {
	since := t.baseAt
	if earliest := t.killedAt.Add(-reported); since.Before(earliest) {
		since = earliest
	}
	since = since.Truncate(time.Second) // as in the status
	var sure, likely []*corev1.ContainerStatus
	for _, statuses := range [][]corev1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses, pod.Status.EphemeralContainerStatuses} {
		for i := range statuses {
			s := &statuses[i]
			end := end(s)
			if end == nil || end.FinishedAt.Time.Before(since) {
				continue
			}
			if told, ok := k.named[endID(s)]; ok && end.FinishedAt.Time.Before(told.Add(linger)) {
				continue
			}
			// Who evicts or deletes a pod sends it SIGKILL too.
			sent := pod.Status.Reason == "Evicted" || pod.DeletionTimestamp != nil
			switch {
			case end.Reason == "OOMKilled":
				sure = append(sure, s)
			case end.ExitCode == 137 && !sent:
				likely = append(likely, s)
			}
		}
	}
	return append(sure, likely...)
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
func (k *kills) told(site *site, dir string, n uint64, now time.Time) {
	for ; len(dir) >= len(site.tree.Layout.Root); dir = path.Dir(dir) {
		t := k.tallies[dir]
		if t == nil {
			continue
		}
		t.toldAt = now
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
		o.Container = t.rise()
	}
	rise := func(dir string) (*oom.Counters, *memory.Value) {
		a := k.tallies[dir]
		if a == nil {
			return nil, nil
		}
		a.read(site.tree, dir, time.Now())
		limit, err := site.tree.Value(dir, memory.Max)
		if err != nil {
			return a.rise(), nil
		}
		return a.rise(), &limit
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
	reason, note := "OutOfMemory"+string(v.Cause), subject(t.container)+": "+v.Message
	if t.request.Name == "" {
		k.tellNode(reason, fmt.Sprintf("a container of a %s pod that is not known any more: %s", t.container, v.Message))
		return true
	}
	k.history.killed(t.request, t.container, v)
	if pod == nil {
		pod = &corev1.Pod{}
		if err := k.pods.Get(ctx, t.request.NamespacedName, pod); err != nil {
			k.tellNode(reason, fmt.Sprintf("pod %s, which is gone, %s", t.request, note))
			return true
		}
	}
	k.log.Info("out of memory", "namespace", pod.Namespace, "pod", pod.Name, "container", t.container, "cause", string(v.Cause), "detail", v.Message)
	k.announce.always(pod, t.container, corev1.EventTypeWarning, reason, "Explain", note)
	return true
}

// tellNode tells of a kill in a pod that there is no object of to have the event.
func (k *kills) tellNode(reason, note string) {
	k.log.Info("out of memory", "reason", reason, "detail", note)
	k.announce.node(corev1.EventTypeWarning, reason, "Explain", note)
}

// tidy drops cgroups that are gone, once what was counted of them is told.
func (k *kills) tidy(tree *cgroup.Tree) {
	k.mu.Lock()
	defer k.mu.Unlock()
	maps.DeleteFunc(k.tallies, func(dir string, t *tally) bool { return !t.pending() && !tree.Is(dir, t.inode) })
	maps.DeleteFunc(k.named, func(_ string, at time.Time) bool { return time.Since(at) > 2*reported })
}
