// Package oom tells what ran out when a container was killed for memory, from the
// kernel's counters around it and the pod's status. It is pure.
//
// Documentation/admin-guide/cgroup-v2.rst, memory.events, and mm/oom_kill.c:
//   - oom rises in the cgroup whose own limit left nothing but to kill. A node
//     that ran out of memory raises it nowhere.
//   - oom_kill rises in the cgroup of each process killed, by whatever OOM killer.
//   - oom_group_kill rises in the cgroup whose memory.oom.group had everything in
//     it killed. That is never one above the limit that was hit.
//
// memory.events.local counts a cgroup's own events; memory.events adds those of
// its descendants, also of those that are gone: a container's cgroup does not
// outlive its last process for long, and then its pod's counters tell.
//
// oom rises a moment before oom_kill. Counters that are compared should be read
// from the container up to kubepods, and some time, such as a second, after the
// notice, so that both are in: a kill whose oom was counted before it looks like
// the node's.
package oom

import (
	"cmp"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/memqos/memqos/memory"
)

// Cause says why a container was killed. Its value is a label of metrics; with
// "OutOfMemory" before it, the reason of an event.
type Cause string

// The causes.
const (
	ContainerLimit  Cause = "ContainerLimit"  // the container's memory.max, or that of a cgroup it made within
	PodLimit        Cause = "PodLimit"        // the pod's memory.max
	QOSLimit        Cause = "QOSLimit"        // memory.max of the pod's QoS class (the kubelet's --qos-reserved)
	KubepodsLimit   Cause = "KubepodsLimit"   // memory.max of kubepods: node allocatable
	NodeOutOfMemory Cause = "NodeOutOfMemory" // no limit at or below kubepods: the node, a cpuset, or a limit above
	GroupKill       Cause = "GroupKill"       // one process was picked, and memory.oom.group of the pod or above took the rest
	Unknown         Cause = "Unknown"         // killed, but the counters of that moment are not there
)

// Counters are by how much a cgroup's memory.events and memory.events.local rose.
type Counters struct {
	Total memory.Events // memory.events
	Local memory.Events // memory.events.local
}

// Observation is what is known of one container over a stretch of time.
type Observation struct {
	// By how much the counters rose, from the container's up to kubepods'. nil:
	// not known, as of a cgroup that is gone; QOS for a Guaranteed pod, and only then.
	Container, Pod, QOS, Kubepods *Counters
	// Status is the container's. It is believed where Container is nil, so its last
	// termination must be of that stretch of time; else nil.
	Status *corev1.ContainerStatus

	// Usage, memory.max and protection of the container as they were last read
	// before; nil or absent: not known.
	Usage  *memory.Value
	Values memory.Values
	// The limits above it; absent: not known.
	PodMax, QOSMax, KubepodsMax *memory.Value
}

// Verdict says why a container was killed.
type Verdict struct {
	Cause Cause
	// Exhausted is what ran out: Cause, but for a GroupKill, where it is the limit
	// that set it off.
	Exhausted Cause
	// Group says that memory.oom.group had processes killed together: of the
	// container, as the kubelet sets it since 1.28, or with GroupKill of its pod.
	Group bool
	// Killed is the number of the container's processes that were killed; 0: not known.
	Killed uint64
	// Usage is the container's, Limit what ran out, nil if not known or none.
	Usage, Limit *memory.Value
	// Min and Low are the container's protection; 0 if none is known.
	Min, Low memory.Value
	// Message is one sentence for people.
	Message string
}

// Explain says why a container was killed, and false if no OOM killer was at it. Where
// neither Container nor Status is known it is of some container beneath the others.
func Explain(o Observation) (Verdict, bool) {
	v := Verdict{Usage: o.Usage, Min: o.Values[memory.Min], Low: o.Values[memory.Low]}
	if o.Container != nil {
		v.Killed = o.Container.Total.OOMKill
	}
	if v.Killed == 0 && !o.endedByOOM() {
		return Verdict{}, false
	}
	v.Exhausted = o.exhausted()
	v.Cause = v.Exhausted
	above := o.Pod.groupKill() || o.QOS.groupKill() || o.Kubepods.groupKill()
	switch {
	case above && v.Exhausted != ContainerLimit:
		v.Cause, v.Group = GroupKill, true
	case o.Container != nil:
		v.Group = o.Container.Total.OOMGroupKill > 0
	case o.Pod != nil:
		v.Group = o.Pod.Total.OOMGroupKill > o.Pod.Local.OOMGroupKill
	}
	v.Limit = o.limit(v.Exhausted)
	v.Message = v.message()
	return v, true
}

// endedByOOM reports whether a container whose counters are gone with its cgroup
// was killed: the runtime says so, or the signal and the counters above do. Exit
// code 137 by itself is any SIGKILL, also that of an eviction.
func (o *Observation) endedByOOM() bool {
	above := cmp.Or(o.Pod, o.QOS, o.Kubepods)
	counted := above != nil && above.Total.OOMKill > 0
	if o.Container != nil {
		return false
	}
	if o.Status == nil {
		return counted
	}
	t := o.Status.State.Terminated
	if t == nil {
		t = o.Status.LastTerminationState.Terminated
	}
	if t == nil {
		return false
	}
	return t.Reason == "OOMKilled" || t.ExitCode == 137 && counted
}

// exhausted finds what ran out, the innermost first.
func (o *Observation) exhausted() Cause {
	switch {
	case o.Container != nil && o.Container.Total.OOM > 0:
		return ContainerLimit
	case o.Pod != nil && o.Pod.Local.OOM > 0:
		return PodLimit
	case o.Container == nil && o.Pod != nil && o.Pod.Total.OOM > 0:
		return ContainerLimit // one beneath the pod that is gone by now
	case o.QOS != nil && o.QOS.Local.OOM > 0:
		return QOSLimit
	case o.Kubepods == nil:
		return Unknown
	case o.Kubepods.Local.OOM > 0:
		return KubepodsLimit
	case o.Pod == nil && cmp.Or(o.QOS, o.Kubepods).Total.OOM > 0:
		return Unknown // it may have been the pod's
	}
	return NodeOutOfMemory
}

func (c *Counters) groupKill() bool { return c != nil && c.Local.OOMGroupKill > 0 }

func (o *Observation) limit(c Cause) *memory.Value {
	var v *memory.Value
	switch c {
	case ContainerLimit:
		if limit, ok := o.Values[memory.Max]; ok {
			v = &limit
		}
	case PodLimit:
		v = o.PodMax
	case QOSLimit:
		v = o.QOSMax
	case KubepodsLimit:
		v = o.KubepodsMax
	}
	if v == nil || *v == memory.Unlimited {
		return nil
	}
	return v
}

var ranOut = map[Cause]string{
	ContainerLimit:  "the container reached its memory limit",
	PodLimit:        "the pod reached its memory limit",
	QOSLimit:        "the pods of this QoS class reached the limit of the class",
	KubepodsLimit:   "the pods of the node together reached node allocatable",
	NodeOutOfMemory: "the node ran out of memory, with no limit of the pod reached",
	Unknown:         "killed for memory, at a limit that could not be told",
}

func (v *Verdict) message() string {
	var b strings.Builder
	b.WriteString(ranOut[v.Exhausted])
	if v.Limit != nil {
		fmt.Fprintf(&b, " of %s", v.Limit.Human())
	}
	switch {
	case v.Cause == GroupKill:
		b.WriteString(", and this container was killed as one of a group (memory.oom.group)")
	case v.Group:
		b.WriteString(", and its processes were killed together (memory.oom.group)")
	}
	var known []string
	if v.Usage != nil {
		known = append(known, fmt.Sprintf("the container last used %.1fMi", float64(*v.Usage)/(1<<20)))
	}
	if v.Min > 0 {
		known = append(known, "memory.min protected "+v.Min.Human())
	}
	if v.Low > 0 {
		known = append(known, "memory.low protected "+v.Low.Human())
	}
	if len(known) > 0 {
		b.WriteString("; " + strings.Join(known, ", "))
	}
	return b.String()
}
