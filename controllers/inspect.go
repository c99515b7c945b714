package controllers

import (
	"context"
	"fmt"
	"maps"
	"path"

	"github.com/containerd/cgroups/v3/cgroup2/stats"
	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/memqos/memqos/cgroup"
	"github.com/memqos/memqos/memory"
	"github.com/memqos/memqos/qos"
)

// Verdict says how a cgroup stands.
type Verdict string

// The verdicts.
const (
	Fulfilled Verdict = "Fulfilled" // every managed file holds what is wanted
	Drifted   Verdict = "Drifted"   // some file holds another value
	Relaxed   Verdict = "Relaxed"   // memory.high is raised by the stall guard
	Pending   Verdict = "Pending"   // there is no cgroup yet, or a limit waits for usage to fall
	Unknown   Verdict = "Unknown"   // neither the pod's status nor an OCI bundle says whose it is; left alone
)

// Sandbox stands for the name of a pod's pause container, which is left alone. No
// container can have it.
const Sandbox = "(sandbox)"

// Inspection is what is wanted and what is, of every cgroup of a node.
type Inspection struct {
	metav1.TypeMeta `json:",inline"`
	Node            string `json:"node"`
	// AllocatableBytes is what memory.high of containers without a limit follows
	// from; 0 if not known.
	AllocatableBytes int64         `json:"allocatableBytes"`
	Cgroups          []Observation `json:"cgroups"`
}

// Observation is one cgroup of an Inspection.
type Observation struct {
	Level     qos.Level              `json:"level"`
	Cgroup    string                 `json:"cgroup"`
	QOSClass  corev1.PodQOSClass     `json:"qosClass"`
	Namespace string                 `json:"namespace"`
	Pod       string                 `json:"pod"`
	UID       string                 `json:"uid"`
	Container string                 `json:"container"`
	Verdict   Verdict                `json:"verdict"`
	Wanted    memory.Values          `json:"wanted,omitempty"`
	Actual    memory.Values          `json:"actual,omitempty"`
	Reason    map[memory.File]string `json:"reason,omitempty"`
	// UsageBytes is memory.current.
	UsageBytes uint64 `json:"usageBytes"`
	// Events are the counters of memory.events, which include the descendants'.
	Events map[string]uint64 `json:"events,omitempty"`
	// Pressure is memory.pressure; absent where the kernel has PSI off.
	Pressure *Pressure `json:"pressure,omitempty"`
}

// Pressure is a cgroup's memory.pressure: the share of time, in percent over 10
// seconds, and the total, in microseconds, in which some or all (full) of its
// tasks waited for memory.
type Pressure struct {
	SomeAvg10     float64 `json:"someAvg10"`
	SomeTotalUsec uint64  `json:"someTotalUsec"`
	FullAvg10     float64 `json:"fullAvg10"`
	FullTotalUsec uint64  `json:"fullTotalUsec"`
}

// Inspect reads the node's pods from the API server and its files from the
// kernel, and compares. It needs no running agent and changes nothing.
func Inspect(ctx context.Context, api *rest.Config, o Options) (*Inspection, error) {
	scheme, err := newScheme()
	if err != nil {
		return nil, err
	}
	mapper, err := staticMapper(nil, nil)
	if err != nil {
		return nil, err
	}
	reader, err := client.New(api, client.Options{Scheme: scheme, Mapper: mapper})
	if err != nil {
		return nil, err
	}
	var pods corev1.PodList
	if err := reader.List(ctx, &pods, client.MatchingFields{"spec.nodeName": o.NodeName}); err != nil {
		return nil, fmt.Errorf("list the pods of node %s: %w", o.NodeName, err)
	}
	tree, err := o.Discover()
	if err != nil {
		return nil, err
	}
	allocatable, _ := nodeAllocatable(ctx, tree, reader, o.NodeName)
	identities, err := newIdentities(o.Config.BundlePaths, nil, logr.Discard())
	if err != nil {
		return nil, err
	}
	site := newSite(tree, o.Config, allocatable, identities)
	site.relaxed = relaxedTo(o.Config.StateDir, o.Boot)
	return site.inspect(o.NodeName, allocatable, pods.Items)
}

func (s *site) inspect(node string, allocatable int64, pods []corev1.Pod) (*Inspection, error) {
	in := &Inspection{
		TypeMeta: metav1.TypeMeta{APIVersion: "memqos.io/v1alpha1", Kind: "Inspection"}, Node: node, AllocatableBytes: allocatable,
	}
	for _, c := range s.locateNode(pods) {
		if err := s.observe(in, c); err != nil {
			return nil, err
		}
	}
	known := map[string]bool{}
	for i := range pods {
		pod := &pods[i]
		if !qos.Active(pod) {
			continue
		}
		l, err := s.locate(pod)
		if err != nil {
			return nil, fmt.Errorf("find the cgroups of pod %s/%s: %w", pod.Namespace, pod.Name, err)
		}
		ended := endedContainers(pod)
		for _, c := range l.cgroups {
			if c.Cgroup == "" && ended[c.Container] {
				continue // nothing is wanted of it any more
			}
			known[c.Cgroup] = true
			if err := s.observe(in, c); err != nil {
				return nil, err
			}
		}
		c := l.cgroups[0]
		c.Level, c.Values, c.Reason = qos.LevelContainer, nil, nil
		for _, c.Cgroup = range l.unknown {
			if err := s.observe(in, c); err != nil {
				return nil, err
			}
		}
		c.Container, c.Values = Sandbox, memory.Values{}
		for _, c.Cgroup = range l.sandboxes {
			if err := s.observe(in, c); err != nil {
				return nil, err
			}
		}
	}
	return in, s.observeOrphans(in, known)
}

// endedContainers are the containers of a pod that have run and will not again,
// such as an init container that is done.
func endedContainers(pod *corev1.Pod) map[string]bool {
	ended := map[string]bool{}
	for _, statuses := range [][]corev1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses, pod.Status.EphemeralContainerStatuses} {
		for i := range statuses {
			ended[statuses[i].Name] = statuses[i].State.Terminated != nil
		}
	}
	return ended
}

// observeOrphans adds the cgroups of pods that the API server does not name.
func (s *site) observeOrphans(in *Inspection, known map[string]bool) error {
	for _, class := range []corev1.PodQOSClass{corev1.PodQOSGuaranteed, corev1.PodQOSBurstable, corev1.PodQOSBestEffort} {
		parent := s.tree.Layout.QOS(class)
		children, err := s.tree.Children(parent)
		if cgroup.IsGone(err) {
			continue
		}
		if err != nil {
			return err
		}
		for _, name := range children {
			if dir := path.Join(parent, name); s.tree.Layout.IsPod(class, name) && !known[dir] {
				if err := s.observe(in, qos.Cgroup{Level: qos.LevelPod, QOSClass: class, Cgroup: dir}); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// observe adds a cgroup with what its files hold.
func (s *site) observe(in *Inspection, c qos.Cgroup) error {
	o := Observation{
		Level: c.Level, Cgroup: c.Cgroup, QOSClass: c.QOSClass, Namespace: c.Namespace, Pod: c.Pod, UID: c.UID, Container: c.Container,
		Wanted: c.Values, Reason: c.Reason, Verdict: Pending,
	}
	defer func() { in.Cgroups = append(in.Cgroups, o) }()
	if c.Cgroup == "" {
		return nil
	}
	actual, err := s.tree.Values(c.Cgroup)
	if cgroup.IsGone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	st, err := s.tree.Stat(c.Cgroup)
	if cgroup.IsGone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if high, relaxed := s.relaxedAt(c.Cgroup); relaxed && high == actual[memory.High] && high > c.Values[memory.High] {
		o.Wanted = maps.Clone(c.Values)
		o.Wanted[memory.High] = high
		o.Reason = maps.Clone(c.Reason)
		o.Reason[memory.High] = "raised by the stall guard from " + c.Values[memory.High].Human()
	}
	o.Actual, o.Verdict = actual, verdict(o.Wanted, actual, memory.Value(st.GetMemory().GetUsage()))
	if o.Verdict == Fulfilled && o.Wanted[memory.High] != c.Values[memory.High] {
		o.Verdict = Relaxed
	}
	o.UsageBytes = st.GetMemory().GetUsage()
	if e := st.GetMemoryEvents(); e != nil {
		o.Events = map[string]uint64{"low": e.GetLow(), "high": e.GetHigh(), "max": e.GetMax(), "oom": e.GetOom(), "oom_kill": e.GetOomKill(), "oom_group_kill": e.GetOomGroupKill()}
	}
	o.Pressure = pressure(st.GetMemory().GetPSI())
	return nil
}

func pressure(psi *stats.PSIStats) *Pressure {
	if psi == nil {
		return nil
	}
	return &Pressure{
		SomeAvg10: psi.GetSome().GetAvg10(), SomeTotalUsec: psi.GetSome().GetTotal(),
		FullAvg10: psi.GetFull().GetAvg10(), FullTotalUsec: psi.GetFull().GetTotal(),
	}
}

// relaxedAt returns what the stall guard has raised memory.high of a cgroup to.
func (s *site) relaxedAt(dir string) (high memory.Value, ok bool) {
	if len(s.relaxed) == 0 {
		return 0, false
	}
	d, err := s.tree.Open(dir)
	if err != nil {
		return 0, false
	}
	defer d.Close()
	high, ok = s.relaxed[d.Inode]
	return high, ok
}

// verdict compares what is wanted of a cgroup with what it holds.
func verdict(wanted, actual memory.Values, usage memory.Value) Verdict {
	if wanted == nil {
		return Unknown
	}
	v := Fulfilled
	for file, want := range wanted {
		got := actual[file]
		if got == want {
			continue
		}
		if want < got && (file == memory.Max && !limitFits(usage, want) || file == memory.High && usage > want) {
			if v == Fulfilled {
				v = Pending
			}
			continue
		}
		v = Drifted
	}
	return v
}
