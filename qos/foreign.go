package qos

import (
	corev1 "k8s.io/api/core/v1"

	"github.com/memqos/memqos/memory"
)

// What a kubelet with the gate on would have written, whatever its configuration:
// by this its work is told from anybody else's.

// Request returns what a kubelet protects at the cgroup of a pod.
func (p Policy) Request(pod *corev1.Pod) memory.Value {
	pod, _ = p.actuated(pod)
	return p.bytes(podRequest(pod))
}

// Requests returns what a kubelet protects at kubepods and at the Burstable class.
func (p Policy) Requests(pods []corev1.Pod) (all, burstable memory.Value) {
	var a, b int64
	for i := range pods {
		if !Active(&pods[i]) {
			continue
		}
		switch Class(&pods[i]) {
		case corev1.PodQOSGuaranteed:
			a = add(a, podRequest(&pods[i]))
		case corev1.PodQOSBurstable:
			a, b = add(a, podRequest(&pods[i])), add(b, podRequest(&pods[i]))
		}
	}
	return p.bytes(a), p.bytes(b)
}

// Throttling is a formula of memory.high with a factor.
type Throttling struct {
	// Since is the minor release that the formula came with: 22 or 27.
	Since  int
	Factor float64
}

// ThrottlingsOf returns with which factors, of at most two decimals, a kubelet
// would have given a container this memory.high: mostly none, else one or two.
func (p Policy) ThrottlingsOf(pod *corev1.Pod, container string, high memory.Value) []Throttling {
	pod, _ = p.actuated(pod)
	r := resourcesOf(pod, container)
	if r == nil {
		return nil
	}
	request, top := quantityBytes(r.Requests.Memory()), quantityBytes(r.Limits.Memory())
	if top == 0 {
		top = p.node.Allocatable
	}
	if top == 0 {
		return nil
	}
	planner := podPlanner{Policy: p}
	var out []Throttling
	for _, release := range releases[:2] {
		for hundredths := 1; hundredths <= 100; hundredths++ {
			planner.ThrottlingFactor.Value = float64(hundredths) / 100
			if v, _ := release.high(planner, request, top, ""); p.bytes(v) == high {
				out = append(out, Throttling{release.minor, planner.ThrottlingFactor.Value})
			}
		}
	}
	return out
}

func resourcesOf(pod *corev1.Pod, container string) *corev1.ResourceRequirements {
	for _, containers := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range containers {
			if containers[i].Name == container {
				return &containers[i].Resources
			}
		}
	}
	return nil
}
