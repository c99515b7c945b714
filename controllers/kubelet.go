package controllers

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"

	"github.com/memqos/memqos/cgroup"
	"github.com/memqos/memqos/ledger"
	"github.com/memqos/memqos/memory"
	"github.com/memqos/memqos/metrics"
	"github.com/memqos/memqos/qos"
)

// duty is a part of MemoryQoS that a kubelet does or does not do itself: with the
// gate on, those before 1.36 do both; later ones as they are configured.
type duty string

const (
	protection duty = "protection" // memory.min and memory.low
	throttling duty = "throttling" // memory.high
)

// files are the files of a duty.
func (d duty) files() []memory.File {
	if d == throttling {
		return []memory.File{memory.High}
	}
	return []memory.File{memory.Min, memory.Low}
}

// witnesses is how many cgroups must show the same before it is believed: one may
// be somebody's hand.
const witnesses = 2

// classPatience is how long the Burstable class must be without protection before
// that shows that no kubelet gives any. One that does writes it once a minute, and
// systemd may reset it before.
const classPatience = 90 * time.Second

// youth is how long after a container's creation a kubelet's value may appear.
const youth = time.Minute

// kubeletFeature knows whether the kubelet's own MemoryQoS writes, by what is on
// the files that memqos did not write: a value that is, to the byte, what a
// kubelet would write is a kubelet's. memqos then leaves those files to it, and
// takes them up again once new pods show none.
//
// After the state directory is lost, what memqos wrote itself looks like a
// kubelet's. The first new pods, or systemd's reset of the Burstable class, then
// put that right.
type kubeletFeature struct {
	ledger   *ledger.Ledger
	metrics  *metrics.Metrics
	announce *announcer
	log      logr.Logger
	now      func() time.Time

	unread string // why the configuration file was last not read

	mu       sync.Mutex
	evidence map[duty]*evidence
}

func newKubeletFeature(l *ledger.Ledger, m *metrics.Metrics, a *announcer, log logr.Logger) *kubeletFeature {
	k := &kubeletFeature{ledger: l, metrics: m, announce: a, log: log, now: time.Now, evidence: map[duty]*evidence{}}
	for _, d := range []duty{protection, throttling} {
		k.evidence[d] = &evidence{}
		for _, file := range d.files() {
			m.LeftToKubelet(file, false)
		}
	}
	return k
}

// evidence weighs what cgroups show. A cgroup is known by its inode number.
type evidence struct {
	standing bool // down
	// configured: the kubelet's configuration file says that it does the duty.
	configured bool
	// written are those that hold a kubelet's value, with the settings by which it
	// would have come about: witnesses must have one in common.
	written map[uint64]witness
	// unwritten a kubelet would have written to.
	unwritten map[uint64]bool
	// discounted are those that held a kubelet's value when it was shown that none
	// writes: an earlier kubelet's, or memqos's own of which it has no record.
	discounted map[uint64]string
	// classUnwritten is since when the Burstable class is not protected.
	classUnwritten time.Time
}

// witness is a cgroup, by its path, and the settings.
type witness struct {
	cgroup string
	by     []qos.Throttling
}

// seeWritten takes in a cgroup that holds a kubelet's value.
func (e *evidence) seeWritten(inode uint64, cgroup string, by ...qos.Throttling) {
	if _, discounted := e.discounted[inode]; discounted {
		return
	}
	if e.written == nil {
		e.written = map[uint64]witness{}
	}
	e.written[inode] = witness{cgroup, by}
	if e.standing {
		delete(e.unwritten, inode)
		return
	}
	for _, setting := range by {
		agree := 0
		for _, other := range e.written {
			if slices.Contains(other.by, setting) {
				agree++
			}
		}
		if agree >= witnesses {
			e.standing, e.unwritten, e.classUnwritten = true, nil, time.Time{}
			return
		}
	}
}

// seeUnwritten takes in a cgroup that a kubelet would have written to and has not.
func (e *evidence) seeUnwritten(inode uint64) {
	delete(e.written, inode)
	if !e.standing {
		return
	}
	if e.unwritten == nil {
		e.unwritten = map[uint64]bool{}
	}
	e.unwritten[inode] = true
	if len(e.unwritten) >= witnesses {
		e.resume()
	}
}

// seeClass takes in whether the Burstable class is protected.
func (e *evidence) seeClass(protected bool, now time.Time) {
	switch {
	case !e.standing || protected:
		e.classUnwritten = time.Time{}
	case e.classUnwritten.IsZero():
		e.classUnwritten = now
	case now.Sub(e.classUnwritten) >= classPatience:
		e.resume()
	}
}

// down reports whether memqos stands down.
func (e *evidence) down() bool { return e.standing || e.configured }

func (e *evidence) resume() {
	discounted := map[uint64]string{}
	for inode, w := range e.written {
		discounted[inode] = w.cgroup
	}
	maps.Copy(discounted, e.discounted)
	*e = evidence{discounted: discounted, configured: e.configured}
}

// prune forgets cgroups that are gone.
func (e *evidence) prune(alive func(cgroup string, inode uint64) bool) {
	maps.DeleteFunc(e.written, func(inode uint64, w witness) bool { return !alive(w.cgroup, inode) })
	maps.DeleteFunc(e.discounted, func(inode uint64, cgroup string) bool { return !alive(cgroup, inode) })
}

// manages reports whether a file is left to the kubelet.
func (k *kubeletFeature) manages(file memory.File) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	for d, e := range k.evidence {
		for _, f := range d.files() {
			if f == file && e.down() {
				return true
			}
		}
	}
	return false
}

// foreign reports whether the value of a file was written by somebody else.
func (k *kubeletFeature) foreign(s *seen, file memory.File) bool {
	e, ours := k.ledger.Get(ledger.Key{Inode: s.dir.Inode, File: file})
	return !ours || e.Wrote != s.holds(file)
}

// observePod takes in what the cgroups of a pod show. running says that its
// containers have had all that a kubelet gives them.
func (k *kubeletFeature) observePod(policy qos.Policy, pod *corev1.Pod, cgroups []seen, running bool) {
	for i := range cgroups {
		s := &cgroups[i]
		switch s.Level {
		case qos.LevelPod:
			if request := policy.Request(pod); request > 0 {
				k.observeProtection(s, request, running)
			}
		case qos.LevelContainer:
			k.observeThrottling(policy, pod, s, running)
		}
	}
}

// observeNode takes in what kubepods and the Burstable class show.
func (k *kubeletFeature) observeNode(policy qos.Policy, pods []corev1.Pod, cgroups []seen) {
	all, burstable := policy.Requests(pods)
	for i := range cgroups {
		switch s := &cgroups[i]; {
		case s.Level == qos.LevelNode && all > 0:
			k.observeProtection(s, all, false)
		case s.Level == qos.LevelQOS && burstable > 0:
			k.observeProtection(s, burstable, false)
			protected := s.holds(memory.Min) > 0 || s.holds(memory.Low) > 0
			k.weigh(protection, func(e *evidence) { e.seeClass(protected, k.now()) })
		}
	}
}

// observeProtection takes in a cgroup of which a kubelet protects the request.
func (k *kubeletFeature) observeProtection(s *seen, request memory.Value, running bool) {
	for _, file := range protection.files() {
		if s.holds(file) == request && k.foreign(s, file) {
			k.weigh(protection, func(e *evidence) { e.seeWritten(s.dir.Inode, s.Cgroup.Cgroup, qos.Throttling{}) })
			return
		}
	}
	if running && s.holds(memory.Min) == 0 && s.holds(memory.Low) == 0 {
		k.weigh(protection, func(e *evidence) { e.seeUnwritten(s.dir.Inode) })
	}
}

// observeThrottling takes in a container.
func (k *kubeletFeature) observeThrottling(policy qos.Policy, pod *corev1.Pod, s *seen, running bool) {
	want, managed := s.Values[memory.High]
	if !managed || want == memory.Unlimited || !k.foreign(s, memory.High) {
		return
	}
	high := s.holds(memory.High)
	if high == memory.Unlimited {
		if running {
			k.weigh(throttling, func(e *evidence) { e.seeUnwritten(s.dir.Inode) })
		}
		return
	}
	// A kubelet writes it at creation. Later it is somebody's hand, however much it
	// looks like a kubelet's.
	if _, ours := k.ledger.Get(ledger.Key{Inode: s.dir.Inode, File: memory.High}); ours && k.now().Sub(s.dir.Changed) > youth {
		return
	}
	if by := policy.ThrottlingsOf(pod, s.Container, high); len(by) > 0 {
		k.weigh(throttling, func(e *evidence) { e.seeWritten(s.dir.Inode, s.Cgroup.Cgroup, by...) })
	}
}

// weigh changes the evidence of a duty, and says so if that changes who does it.
func (k *kubeletFeature) weigh(d duty, change func(*evidence)) {
	k.mu.Lock()
	e := k.evidence[d]
	before := e.down()
	change(e)
	standing := e.down()
	k.mu.Unlock()
	if standing == before {
		return
	}
	for _, file := range d.files() {
		k.metrics.LeftToKubelet(file, standing)
	}
	if standing {
		note := fmt.Sprintf("The kubelet's own MemoryQoS writes %s: memqos leaves them to it (%s)", d.names(), d)
		k.announce.node(corev1.EventTypeWarning, "MemoryQoSStandDown", "StandDown", note)
		k.log.Info("standing down: the kubelet's own MemoryQoS writes these files", "duty", d, "files", d.names())
		return
	}
	note := fmt.Sprintf("No kubelet writes %s any more: memqos does again (%s)", d.names(), d)
	k.announce.node(corev1.EventTypeNormal, "MemoryQoSResumed", "Resume", note)
	k.log.Info("taking up again: no kubelet writes these files any more", "duty", d, "files", d.names())
}

// readConfig takes in the kubelet's configuration file. While it cannot be read,
// what it last said stays.
func (k *kubeletFeature) readConfig(path string) {
	c, err := readKubeletConfig(path)
	if err != nil {
		if k.unread != err.Error() {
			k.log.Error(err, "whether the kubelet's own MemoryQoS writes is told from the cgroups alone")
		}
		k.unread = err.Error()
		return
	}
	k.unread = ""
	for _, d := range []duty{protection, throttling} {
		k.weigh(d, func(e *evidence) { e.configured = c.does(d) })
	}
}

// names are the files in words.
func (d duty) names() string {
	var names []string
	for _, file := range d.files() {
		names = append(names, string(file))
	}
	return strings.Join(names, " and ")
}

// prune forgets witnesses that are gone.
func (k *kubeletFeature) prune(tree *cgroup.Tree) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, e := range k.evidence {
		e.prune(tree.Is)
	}
}

// giveBack writes what a kubelet had written back over what memqos wrote, once it
// has stood down. A kernel default is no kubelet's value: there, what memqos wrote
// stays, and passes for the kubelet's from here on.
func (k *kubeletFeature) giveBack(tree *cgroup.Tree) error {
	var errs []error
	var done []ledger.Key
	for key, e := range k.ledger.All() {
		if !k.manages(key.File) {
			continue
		}
		if e.Original != defaultOf(key.File) {
			if err := revert(tree, key, e); err != nil {
				errs = append(errs, err)
				continue
			}
		}
		done = append(done, key)
	}
	if len(done) > 0 {
		errs = append(errs, k.ledger.Forget(done...))
	}
	return errors.Join(errs...)
}
