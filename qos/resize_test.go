package qos

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

func resources(text string) *corev1.ResourceRequirements {
	c := container("", text)
	return &c.Resources
}

// asks makes a running pod of one container that asks for "request/limit", in
// whose status the kubelet reports has; "" is a kubelet that reports nothing.
func asks(asked, has string) *corev1.Pod {
	p := pod(corev1.PodQOSBurstable, container("c", asked))
	p.Status.Phase = corev1.PodRunning
	s := corev1.ContainerStatus{Name: "c"}
	if has != "" {
		s.Resources = resources(has)
	}
	p.Status.ContainerStatuses = []corev1.ContainerStatus{s}
	return p
}

func podAsks(asked, has, overhead string) *corev1.Pod {
	p := pod(corev1.PodQOSBurstable, container("c", "-/-"))
	p.Spec.Resources, p.Status.Resources = resources(asked), resources(has)
	p.Status.Phase = corev1.PodRunning
	if overhead != "" {
		overheadOf(p, overhead)
	}
	return p
}

// A cgroup follows what the kubelet has done, the sums what the spec asks for.
func TestResize(t *testing.T) {
	const is = "memory.min=67108864 memory.high=127504384 memory.max=134217728"
	const waits = "memory.min=67108864 memory.high=127504384"
	init := asks("32Mi/32Mi", "")
	init.Spec.InitContainers, init.Status.InitContainerStatuses = []corev1.Container{container("i", "128Mi/256Mi")}, asks("-/-", "64Mi/128Mi").Status.ContainerStatuses
	init.Status.InitContainerStatuses[0].Name = "i"
	cpuLimited := withPodLevel(asks("64Mi/-", "64Mi/1Gi"), "", "", "", "1Gi")
	pendingPod := podAsks("128Mi/256Mi", "64Mi/128Mi", "")
	pendingPod.Status.Phase = corev1.PodPending
	for _, tc := range []struct {
		name             string
		pod              *corev1.Pod
		container, ofPod string
		kubepods         string
	}{
		{"no resize, an old kubelet", asks("64Mi/128Mi", ""), is, "memory.min=67108864 memory.max=134217728", "67108864"},
		{"no resize, or one that is done", asks("64Mi/128Mi", "64Mi/128Mi"), is, "memory.min=67108864 memory.max=134217728", "67108864"},
		{"waiting: grow", asks("128Mi/256Mi", "64Mi/128Mi"), waits, "memory.min=67108864", "134217728"},
		{"waiting: shrink", asks("16Mi/32Mi", "64Mi/128Mi"), waits, "memory.min=67108864", "16777216"},
		{"waiting: a limit is added", asks("64Mi/128Mi", "64Mi/-"), "memory.min=67108864 memory.high=30930472960", "memory.min=67108864", "67108864"},
		{"waiting: a request is added", asks("64Mi/128Mi", "-/128Mi"), "memory.min=0 memory.high=120795136", "memory.min=0", "67108864"},
		{"a limit read from a cgroup is floored", asks("1/100000001", "1/99999744"), "memory.min=0 memory.high=89997312 memory.max=99999744", "memory.min=0 memory.max=99999744", "0"},
		{"the pod's limit is no limit of the container", cpuLimited, "memory.min=67108864 memory.high=30930472960 memory.max=1073741824", "memory.min=67108864 memory.max=1073741824", "67108864"},
		{"init container", init, waits, "memory.min=67108864", "134217728"},
		{"pod-level: waiting", podAsks("128Mi/256Mi", "64Mi/128Mi", ""), "memory.min=0 memory.high=max", "memory.min=67108864", "134217728"},
		{"pod-level: the reported limit has the overhead in it", podAsks("64Mi/128Mi", "64Mi/138Mi", "10Mi"), "memory.min=0 memory.high=max memory.max=134217728", "memory.min=77594624 memory.max=144703488", "77594624"},
		{"pod-level: waiting, with overhead", podAsks("64Mi/256Mi", "64Mi/138Mi", "10Mi"), "memory.min=0 memory.high=max", "memory.min=77594624", "77594624"},
		{"pod-level: not running yet", pendingPod, "memory.min=0 memory.high=max memory.max=268435456", "memory.min=134217728 memory.max=268435456", "134217728"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := policy(t, "1.27", 0, Node{Allocatable: gi32, PageSize: 4096})
			before := tc.pod.DeepCopy()
			if got := p.Containers(tc.pod)[0].Values.String(); got != tc.container {
				t.Errorf("container: got  %s\nwant %s", got, tc.container)
			}
			if got := p.Pod(tc.pod).Values.String(); got != tc.ofPod {
				t.Errorf("pod: got  %s\nwant %s", got, tc.ofPod)
			}
			if got := p.Node([]corev1.Pod{*tc.pod})[0].Values.String(); got != "memory.min="+tc.kubepods {
				t.Errorf("kubepods: got %s, want memory.min=%s", got, tc.kubepods)
			}
			if diff := cmp.Diff(before, tc.pod); diff != "" {
				t.Errorf("the pod was changed:\n%s", diff)
			}
		})
	}
}

// The overhead that is in a reported pod-level limit is not counted twice.
func TestResizePodLevelHigh(t *testing.T) {
	p := podAsks("64Mi/256Mi", "64Mi/138Mi", "10Mi")
	got := policy(t, "1.37", 0, Node{Allocatable: gi32, PageSize: 4096}).Pod(p).Values.String()
	if want := "memory.min=0 memory.low=77594624 memory.high=137990144"; got != want { // 74Mi + 0.9 x (138Mi - 74Mi)
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// What is allocated and not handed to the runtime yet has no part in it.
func TestResizeAllocated(t *testing.T) {
	p := asks("128Mi/256Mi", "64Mi/128Mi")
	p.Status.ContainerStatuses[0].AllocatedResources = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("128Mi")}
	got := policy(t, "1.27", 0, Node{Allocatable: gi32, PageSize: 4096}).Containers(p)[0].Values.String()
	if want := "memory.min=67108864 memory.high=127504384"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}
