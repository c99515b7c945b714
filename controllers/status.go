package controllers

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"time"

	"github.com/containerd/cgroups/v3/cgroup2/stats"
	"github.com/go-logr/logr"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/memqos/memqos/cgroup"
	"github.com/memqos/memqos/guard"
	"github.com/memqos/memqos/memory"
	"github.com/memqos/memqos/qos"
	"github.com/memqos/memqos/status"
)

// Inspect reads the node's pods from the API server and its files from the
// kernel, and compares. It needs no running agent and changes nothing. What only an
// agent sees, such as who wrote a value, it does not know.
func Inspect(ctx context.Context, api *rest.Config, o Options) (*status.NodeStatus, error) {
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
	v := view{site: newSite(tree, o.Config, allocatable, identities)}
	// Those that cannot be read are told of by the agent; here they only look drifted.
	v.relaxed, _ = loadLatches(o.Config.StateDir, o.Boot)
	return v.status(o.NodeName, allocatable, pods.Items, nil)
}

// view is what a status is made of.
type view struct {
	*site
	// relaxed are the stall guard's latches by inode number.
	relaxed map[uint64]guard.Latch
	// manages reports whether a file is left to the kubelet; nil: none is.
	manages func(memory.File) bool
	history *history
}

// status reads every cgroup, or of pods those of the wanted ones. Pods are all that
// the node has.
func (v view) status(node string, allocatable int64, pods []corev1.Pod, wanted func(*corev1.Pod) bool) (*status.NodeStatus, error) {
	st := newStatus(node, v.tree)
	st.AllocatableBytes, st.Kills = allocatable, v.history.lately()
	for _, c := range v.locateNode(pods) {
		if err := v.observe(st, c); err != nil {
			return nil, err
		}
	}
	known := map[string]bool{}
	for i := range pods {
		pod := &pods[i]
		if !qos.Active(pod) || (wanted != nil && !wanted(pod)) {
			continue
		}
		l, err := v.locate(pod)
		if err != nil {
			// One pod whose annotations name no cgroup must not hide the node's others.
			c := l.cgroups[0]
			st.Cgroups = append(st.Cgroups, status.Cgroup{Level: c.Level, QOSClass: c.QOSClass, Namespace: c.Namespace, Pod: c.Pod, UID: c.UID, Verdict: status.Unknown})
			continue
		}
		ended := endedContainers(pod)
		for _, c := range l.cgroups {
			if c.Cgroup == "" && ended[c.Container] {
				continue // nothing is wanted of it any more
			}
			known[c.Cgroup] = true
			if err := v.observe(st, c); err != nil {
				return nil, err
			}
		}
		c := l.cgroups[0]
		c.Level, c.Values, c.Reason = qos.LevelContainer, nil, nil
		for _, c.Cgroup = range l.unknown {
			if err := v.observe(st, c); err != nil {
				return nil, err
			}
		}
		c.Container, c.Values = status.Sandbox, memory.Values{}
		for _, c.Cgroup = range l.sandboxes {
			if err := v.observe(st, c); err != nil {
				return nil, err
			}
		}
	}
	if wanted != nil {
		return st, nil
	}
	return st, v.observeOrphans(st, known)
}

// newStatus is a status of a machine without cgroups. tree is nil where there is none.
func newStatus(node string, tree *cgroup.Tree) *status.NodeStatus {
	st := &status.NodeStatus{
		TypeMeta: metav1.TypeMeta{APIVersion: status.APIVersion, Kind: status.Kind},
		Node:     node, Time: time.Now(), Cgroups: []status.Cgroup{},
	}
	m := &st.Machine
	m.PageSize = int64(os.Getpagesize())
	var uts unix.Utsname
	if unix.Uname(&uts) == nil {
		m.Kernel = unix.ByteSliceToString(uts.Release[:])
	}
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		m.CapacityBytes, m.SwapBytes = int64(info.Totalram)*int64(info.Unit), int64(info.Totalswap)*int64(info.Unit)
	}
	if tree != nil {
		m.CgroupDriver, m.Kubepods = string(tree.Layout.Driver), tree.Layout.Root
		m.MountOptions = cgroup.MountOptions(tree.Mount)
		if dir, err := tree.Open(tree.Layout.Root); err == nil {
			pressure, err := dir.Pressure()
			m.Pressure = err == nil && pressure != nil
			dir.Close()
		}
	}
	return st
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
func (v view) observeOrphans(st *status.NodeStatus, known map[string]bool) error {
	for _, class := range []corev1.PodQOSClass{corev1.PodQOSGuaranteed, corev1.PodQOSBurstable, corev1.PodQOSBestEffort} {
		parent := v.tree.Layout.QOS(class)
		children, err := v.tree.Children(parent)
		if cgroup.IsGone(err) {
			continue
		}
		if err != nil {
			return err
		}
		for _, name := range children {
			if dir := path.Join(parent, name); v.tree.Layout.IsPod(class, name) && !known[dir] {
				if err := v.observe(st, qos.Cgroup{Level: qos.LevelPod, QOSClass: class, Cgroup: dir}); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// observe adds a cgroup with what its files hold. One that goes away meanwhile is
// Pending.
func (v view) observe(st *status.NodeStatus, c qos.Cgroup) error {
	o := status.Cgroup{
		Level: c.Level, Cgroup: c.Cgroup, QOSClass: c.QOSClass, Namespace: c.Namespace, Pod: c.Pod, UID: c.UID, Container: c.Container,
		Wanted: c.Values, Reason: c.Reason, Verdict: status.Pending,
	}
	if c.Cgroup != "" {
		if err := v.read(&o); err != nil && !cgroup.IsGone(err) {
			return err
		}
	}
	st.Cgroups = append(st.Cgroups, o)
	return nil
}

func (v view) read(o *status.Cgroup) error {
	dir, err := v.tree.Open(o.Cgroup)
	if err != nil {
		return err
	}
	defer dir.Close()
	actual := make(memory.Values, len(memory.Files))
	for _, file := range memory.Files {
		if actual[file], err = dir.Value(file); err != nil {
			return err
		}
	}
	st, err := v.tree.Stat(o.Cgroup)
	if err != nil {
		return err
	}
	v.leaveToKubelet(o)
	planned := o.Wanted[memory.High]
	if latch := v.relaxed[dir.Inode]; latch.Relaxed() && latch.High > planned {
		o.Wanted, o.Reason = maps.Clone(o.Wanted), maps.Clone(o.Reason)
		o.Wanted[memory.High] = latch.High
		o.Reason[memory.High] = fmt.Sprintf("raised by the stall guard; %s: %s", planned.Human(), o.Reason[memory.High])
		o.Relaxed = &status.Relaxation{Planned: planned, Since: sinceBoot(latch.Since)}
	}
	o.Actual, o.UsageBytes = actual, st.GetMemory().GetUsage()
	o.Verdict = status.Compare(o.Wanted, actual, memory.Value(o.UsageBytes), limitFits)
	if o.Verdict == status.Fulfilled && o.Relaxed != nil {
		o.Verdict = status.Relaxed
	}
	if e := st.GetMemoryEvents(); e != nil {
		o.Events = map[string]uint64{"low": e.GetLow(), "high": e.GetHigh(), "max": e.GetMax(), "oom": e.GetOom(), "oom_kill": e.GetOomKill(), "oom_group_kill": e.GetOomGroupKill()}
	}
	o.Pressure = pressureOf(st.GetMemory().GetPSI())
	v.history.tell(dir, o)
	return nil
}

// leaveToKubelet takes the files that the kubelet's own MemoryQoS writes out of what
// is wanted.
func (v view) leaveToKubelet(o *status.Cgroup) {
	if v.manages == nil {
		return
	}
	for _, file := range memory.Files {
		if _, wanted := o.Wanted[file]; wanted && v.manages(file) {
			o.Wanted, o.Reason = maps.Clone(o.Wanted), maps.Clone(o.Reason)
			delete(o.Wanted, file)
			o.Reason[file] = "left to the kubelet's own MemoryQoS"
		}
	}
}

func pressureOf(psi *stats.PSIStats) *status.Pressure {
	if psi == nil {
		return nil
	}
	return &status.Pressure{
		SomeAvg10: psi.GetSome().GetAvg10(), SomeTotalUsec: psi.GetSome().GetTotal(),
		FullAvg10: psi.GetFull().GetAvg10(), FullTotalUsec: psi.GetFull().GetTotal(),
	}
}

// idleness is why a node is not served.
type idleness struct{ reason, message string }

// status is what the agent tells, of all pods or of one. It is for concurrent use.
func (a *agent) status(ctx context.Context, namespace, pod string) (*status.NodeStatus, error) {
	site := a.surveyor.site.Load()
	serving := a.serving.Load()
	if site == nil || serving == nil {
		st := newStatus(a.options.NodeName, nil)
		st.Agent = a.describe(nil)
		return st, nil
	}
	var pods corev1.PodList
	if err := a.manager.GetCache().List(ctx, &pods); err != nil {
		return nil, fmt.Errorf("list the node's pods: %w", err)
	}
	var wanted func(*corev1.Pod) bool
	if pod != "" {
		wanted = func(p *corev1.Pod) bool { return p.Namespace == namespace && p.Name == pod }
	}
	v := view{site: site, relaxed: serving.guard.relaxations(), manages: serving.kubelet.manages, history: a.history}
	st, err := v.status(a.options.NodeName, site.allocatable, pods.Items, wanted)
	if err != nil {
		return nil, err
	}
	st.Agent = a.describe(serving.kubelet)
	return st, nil
}

// serving is what the agent has once it serves the node.
type serving struct {
	guard   *stallGuard
	kubelet *kubeletFeature
}

// describe tells of the agent itself.
func (a *agent) describe(k *kubeletFeature) *status.Agent {
	out := &status.Agent{
		Version: a.options.Version, Started: a.started, Configuration: a.surveyor.config.Load(), Watching: a.watching.Load(),
	}
	if why := a.surveyor.idle.Load(); why != nil {
		out.Idle, out.IdleMessage = why.reason, why.message
	}
	if refused := a.refused.Load(); refused != nil {
		out.Refused = *refused
	}
	if at := a.pass.lastEnd(); !at.IsZero() {
		out.LastPass = &at
	}
	if k != nil {
		for _, file := range memory.Files {
			if k.manages(file) {
				out.LeftToKubelet = append(out.LeftToKubelet, file)
			}
		}
		out.KubeletConfigured = k.configured()
	}
	return out
}

// configured are the files that the kubelet's configuration file has it write.
func (k *kubeletFeature) configured() (files []memory.File) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, d := range []duty{protection, throttling} {
		if k.evidence[d].configured {
			files = append(files, d.files()...)
		}
	}
	return files
}

// errBusy says that others ask already.
var errBusy = errors.New("others are being answered")
