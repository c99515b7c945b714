package oom

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"pgregory.net/rapid"

	"github.com/memqos/memqos/memory"
)

// node is a tree of four cgroups, kubepods first, with the kernel's rules for
// counting: at a cgroup, and in Total at all above it.
type node [4]*Counters

const (
	kubepods = iota
	class
	pod
	container
)

func newNode() *node {
	return &node{{}, {}, {}, {}}
}

// kill counts what the kernel does when a limit at level (-1: none) is hit, n
// processes of the container are killed, and group (-1: none) is the level whose
// memory.oom.group took them.
func (t *node) kill(level int, n uint64, group int) *node {
	for i, c := range t {
		if i <= level {
			c.Total.OOM++
			c.Total.Max += 20
		}
		if i == level {
			c.Local.OOM++
			c.Local.Max += 20
		}
		c.Total.OOMKill += n
		if i == container {
			c.Local.OOMKill += n
		}
		if i <= group {
			c.Total.OOMGroupKill++
		}
		if i == group {
			c.Local.OOMGroupKill++
		}
	}
	return t
}

// elsewhere counts an OOM kill at the limit of another pod of the class.
func (t *node) elsewhere() *node {
	for _, c := range t[:pod] {
		c.Total.OOM++
		c.Total.OOMKill++
	}
	return t
}

func (t *node) observation() Observation {
	return Observation{Container: t[container], Pod: t[pod], QOS: t[class], Kubepods: t[kubepods]}
}

func ended(reason string, code int32) *corev1.ContainerStatus {
	return &corev1.ContainerStatus{LastTerminationState: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{Reason: reason, ExitCode: code}}}
}

func TestExplain(t *testing.T) {
	// gone is an observation of a container whose cgroup is gone.
	gone := func(n *node, status *corev1.ContainerStatus) Observation {
		o := n.observation()
		o.Container, o.Status = nil, status
		return o
	}
	oomKilled := ended("OOMKilled", 137)
	guaranteed := newNode().kill(kubepods, 1, -1).observation()
	guaranteed.QOS = nil
	within := newNode().observation() // a cgroup that the container made, as crun does
	within.Container.Total = memory.Events{OOM: 1, OOMKill: 1}
	within.Pod.Total, within.QOS.Total, within.Kubepods.Total = within.Container.Total, within.Container.Total, within.Container.Total
	noKubepods := newNode().kill(-1, 1, -1).observation()
	noKubepods.Kubepods = nil
	noPod := newNode().kill(-1, 1, -1).observation()
	noPod.Pod = nil
	// vanished is an observation of a container whose pod's cgroup is gone too.
	vanished := func(n *node, status *corev1.ContainerStatus) Observation {
		o := gone(n, status)
		o.Pod = nil
		return o
	}
	vanishedGuaranteed := vanished(newNode().kill(-1, 1, -1), oomKilled)
	vanishedGuaranteed.QOS = nil
	otherClass := vanished(newNode().kill(-1, 1, -1), oomKilled)
	otherClass.Kubepods = &Counters{Total: memory.Events{OOM: 1, OOMKill: 2}}
	noPodOthers := newNode().kill(-1, 1, -1).elsewhere().observation()
	noPodOthers.Pod = nil

	for _, tc := range []struct {
		name      string
		o         Observation
		cause     Cause
		exhausted Cause
		group     bool
	}{
		{"nothing", newNode().observation(), "", "", false},
		{"another pod's", newNode().elsewhere().observation(), "", "", false},
		{"oom, and nobody killed", newNode().kill(container, 0, -1).observation(), "", "", false},
		{"container", newNode().kill(container, 1, -1).observation(), ContainerLimit, ContainerLimit, false},
		{"container, as a group", newNode().kill(container, 3, container).observation(), ContainerLimit, ContainerLimit, true},
		{"within the container", within, ContainerLimit, ContainerLimit, false},
		{"container, and another pod's", newNode().kill(container, 1, -1).elsewhere().observation(), ContainerLimit, ContainerLimit, false},
		{"pod", newNode().kill(pod, 1, -1).observation(), PodLimit, PodLimit, false},
		{"pod, the container as a group", newNode().kill(pod, 2, container).observation(), PodLimit, PodLimit, true},
		{"pod, as a group", newNode().kill(pod, 2, pod).observation(), GroupKill, PodLimit, true},
		{"container, and then its pod as a group", newNode().kill(container, 1, -1).kill(-1, 1, pod).observation(), ContainerLimit, ContainerLimit, false},
		{"class", newNode().kill(class, 1, -1).observation(), QOSLimit, QOSLimit, false},
		{"kubepods", newNode().kill(kubepods, 1, -1).observation(), KubepodsLimit, KubepodsLimit, false},
		{"kubepods, Guaranteed", guaranteed, KubepodsLimit, KubepodsLimit, false},
		{"node", newNode().kill(-1, 1, -1).observation(), NodeOutOfMemory, NodeOutOfMemory, false},
		{"node, the container as a group", newNode().kill(-1, 4, container).observation(), NodeOutOfMemory, NodeOutOfMemory, true},
		{"node, the pod as a group", newNode().kill(-1, 4, pod).observation(), GroupKill, NodeOutOfMemory, true},
		{"node, and another pod's", newNode().kill(-1, 1, -1).elsewhere().observation(), NodeOutOfMemory, NodeOutOfMemory, false},

		{"gone: container", gone(newNode().kill(container, 1, container), oomKilled), ContainerLimit, ContainerLimit, true},
		{"gone: pod", gone(newNode().kill(pod, 1, -1), oomKilled), PodLimit, PodLimit, false},
		{"gone: pod, as a group", gone(newNode().kill(pod, 1, pod), oomKilled), GroupKill, PodLimit, true},
		{"gone: node", gone(newNode().kill(-1, 1, -1), oomKilled), NodeOutOfMemory, NodeOutOfMemory, false},
		{"gone: the runtime missed it", gone(newNode().kill(container, 1, -1), ended("Error", 137)), ContainerLimit, ContainerLimit, false},
		{"gone: still the current state", gone(newNode().kill(container, 1, -1), &corev1.ContainerStatus{State: oomKilled.LastTerminationState}), ContainerLimit, ContainerLimit, false},
		{"gone: evicted or deleted", gone(newNode(), ended("Error", 137)), "", "", false},
		{"gone: ended by itself", gone(newNode().kill(container, 1, -1), ended("Completed", 0)), "", "", false},
		{"gone: no status", gone(newNode().kill(container, 1, -1), nil), ContainerLimit, ContainerLimit, false},
		{"gone: no status, and nobody killed", gone(newNode().elsewhere(), nil), "", "", false},
		{"gone: never ended", gone(newNode().kill(container, 1, -1), &corev1.ContainerStatus{}), "", "", false},

		{"only the status", Observation{Status: oomKilled}, Unknown, Unknown, false},
		{"no kubepods", noKubepods, Unknown, Unknown, false},
		{"no pod, nobody's limit", noPod, NodeOutOfMemory, NodeOutOfMemory, false},
		{"no pod, somebody's limit", noPodOthers, Unknown, Unknown, false},

		{"vanished: node", vanished(newNode().kill(-1, 1, -1), oomKilled), NodeOutOfMemory, NodeOutOfMemory, false},
		{"vanished: node, the runtime missed it", vanished(newNode().kill(-1, 1, -1), ended("Error", 137)), NodeOutOfMemory, NodeOutOfMemory, false},
		{"vanished: node, Guaranteed", vanishedGuaranteed, NodeOutOfMemory, NodeOutOfMemory, false},
		{"vanished: node, and a limit in another class", otherClass, NodeOutOfMemory, NodeOutOfMemory, false},
		{"vanished: its limit, its pod's, or another's", vanished(newNode().kill(container, 1, -1), oomKilled), Unknown, Unknown, false},
		{"vanished: class", vanished(newNode().kill(class, 1, -1), oomKilled), QOSLimit, QOSLimit, false},
		{"vanished: kubepods", vanished(newNode().kill(kubepods, 1, -1), oomKilled), KubepodsLimit, KubepodsLimit, false},
		{"vanished: evicted", vanished(newNode(), ended("Error", 137)), "", "", false},
		{"vanished: ended by itself", vanished(newNode().kill(-1, 1, -1), ended("Completed", 0)), "", "", false},
		{"vanished: no status either", vanished(newNode().kill(-1, 1, -1), nil), NodeOutOfMemory, NodeOutOfMemory, false},
		{"vanished: nobody killed", vanished(newNode(), nil), "", "", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v, ok := Explain(tc.o)
			if ok != (tc.cause != "") || v.Cause != tc.cause || v.Exhausted != tc.exhausted || v.Group != tc.group {
				t.Errorf("got %v, %+v; want %q, exhausted %q, group %t", ok, v, tc.cause, tc.exhausted, tc.group)
			}
			if ok && v.Message == "" {
				t.Error("no message")
			}
		})
	}
}

func TestMessage(t *testing.T) {
	o := newNode().kill(container, 3, container).observation()
	o.Usage = new(memory.Value(133 << 20))
	o.Values = memory.Values{memory.Min: 64 << 20, memory.Max: 128 << 20}
	o.PodMax, o.QOSMax, o.KubepodsMax = new(memory.Value(256<<20)), new(memory.Value(1<<30)), new(memory.Value(8<<30))
	v, _ := Explain(o)
	want := Verdict{
		Cause: ContainerLimit, Exhausted: ContainerLimit, Group: true, Killed: 3,
		Usage: new(memory.Value(133 << 20)), Limit: new(memory.Value(128 << 20)), Min: 64 << 20,
		Message: "the container reached its memory limit of 128Mi, and its processes were killed together (memory.oom.group); the container last used 133.0Mi, memory.min protected 64Mi",
	}
	if diff := cmp.Diff(want, v); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	o.Values = memory.Values{memory.Low: 64 << 20, memory.Max: memory.Unlimited}
	for _, tc := range []struct {
		level, group int
		want         string
	}{
		{-1, -1, "the node ran out of memory, with no limit of the pod reached; the container last used 133.0Mi, memory.low protected 64Mi"},
		{kubepods, -1, "the pods of the node together reached node allocatable of 8Gi; the container last used 133.0Mi, memory.low protected 64Mi"},
		{class, -1, "the pods of this QoS class reached the limit of the class of 1Gi; the container last used 133.0Mi, memory.low protected 64Mi"},
		{pod, pod, "the pod reached its memory limit of 256Mi, and this container was killed as one of a group (memory.oom.group); the container last used 133.0Mi, memory.low protected 64Mi"},
		{container, -1, "the container reached its memory limit; the container last used 133.0Mi, memory.low protected 64Mi"},
	} {
		n := newNode().kill(tc.level, 1, tc.group)
		o.Container, o.Pod, o.QOS, o.Kubepods = n[container], n[pod], n[class], n[kubepods]
		v, _ := Explain(o)
		if diff := cmp.Diff(tc.want, v.Message); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
	}
}

// Whatever else is going on above and beside it, the limit that was hit is named,
// with the container's counters and without.
func TestNamesTheLimit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		level := rapid.IntRange(-1, container).Draw(t, "level")
		n := newNode().kill(level, rapid.Uint64Range(1, 9).Draw(t, "killed"), -1)
		for range rapid.IntRange(0, 5).Draw(t, "elsewhere") {
			n.elsewhere()
		}
		o := n.observation()
		if rapid.Bool().Draw(t, "gone") {
			o.Container, o.Status = nil, ended("OOMKilled", 137)
		}
		want := []Cause{NodeOutOfMemory, KubepodsLimit, QOSLimit, PodLimit, ContainerLimit}[level+1]
		if v, ok := Explain(o); !ok || v.Cause != want {
			t.Fatalf("got %v, %+v, want %s", ok, v, want)
		}
	})
}
