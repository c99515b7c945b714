package qos

import (
	corev1 "k8s.io/api/core/v1"

	"github.com/memqos/memqos/memory"
)

// actuated returns the pod with the memory that its cgroups have been given in
// place of the memory that its spec asks for, and whether the two differ. They
// do while an in-place resize waits (deferred, infeasible, not yet seen) or is
// under way; else the pod comes back as it is, and it does where the kubelet
// reports neither.
//
// Since 1.33 a kubelet reports per container the request that it last handed to
// the runtime and the limit that the runtime says it has
// (convertToAPIContainerStatuses in pkg/kubelet/kubelet_pods.go, status
// resources), and since 1.36 the like for pod-level resources. What it has
// allocated but not handed over is in allocatedResources: not of interest here.
func (p Policy) actuated(pod *corev1.Pod) (_ *corev1.Pod, resizing bool) {
	out := pod
	edit := func() *corev1.PodSpec {
		if out == pod {
			out = pod.DeepCopy()
		}
		return &out.Spec
	}
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		if r := p.given(&c.Resources, reported(pod.Status.InitContainerStatuses, c.Name), 0); r != nil {
			edit().InitContainers[i].Resources = *r
		}
	}
	for i := range pod.Spec.Containers {
		c := &pod.Spec.Containers[i]
		if r := p.given(&c.Resources, reported(pod.Status.ContainerStatuses, c.Name), 0); r != nil {
			edit().Containers[i].Resources = *r
		}
	}
	// Before the pod runs its status repeats what is allocated, overhead included
	// in the request.
	if pod.Spec.Resources != nil && pod.Status.Phase == corev1.PodRunning {
		if r := p.given(pod.Spec.Resources, pod.Status.Resources, quantityBytes(pod.Spec.Overhead.Memory())); r != nil {
			edit().Resources = r
		}
	}
	return out, out != pod
}

// leaveMax takes memory.max out of the plan. The kubelet writes it, in an order
// of its own, some time before its status says so: who puts back the old value
// in between undoes the resize.
func (c *Cgroup) leaveMax() {
	c.leave(memory.Max, "the pod is being resized in place")
	c.Waits = append(c.Waits, memory.Max)
}

// reported is what the kubelet reports of a container's resources, or nil.
func reported(statuses []corev1.ContainerStatus, name string) *corev1.ResourceRequirements {
	for i := range statuses {
		if statuses[i].Name == name {
			return statuses[i].Resources
		}
	}
	return nil
}

// given returns the resources with their memory as reported, or nil if that
// makes no difference. overhead is in the reported limit and not in the asked
// one.
//
// A resize can change and add requests and limits but not remove them. So what
// is asked for and not reported is still to come; what is reported and not asked
// for is something else: a container that has no memory limit reports the pod's.
func (p Policy) given(asked, reported *corev1.ResourceRequirements, overhead int64) *corev1.ResourceRequirements {
	if reported == nil {
		return nil
	}
	out := asked
	edit := func() *corev1.ResourceRequirements {
		if out == asked {
			out = asked.DeepCopy()
		}
		return out
	}
	if want, ok := asked.Requests[corev1.ResourceMemory]; ok {
		if got, ok := reported.Requests[corev1.ResourceMemory]; !ok {
			delete(edit().Requests, corev1.ResourceMemory)
		} else if got.Cmp(want) != 0 {
			edit().Requests[corev1.ResourceMemory] = got
		}
	}
	if want, ok := asked.Limits[corev1.ResourceMemory]; ok {
		if got, ok := reported.Limits[corev1.ResourceMemory]; !ok {
			delete(edit().Limits, corev1.ResourceMemory)
		} else if p.bytes(quantityBytes(&got)) != p.bytes(add(quantityBytes(&want), overhead)) {
			// A limit that was read from a cgroup is floored to the page: one that
			// differs by less is the asked one.
			limit := got.DeepCopy()
			limit.Sub(*quantity(overhead))
			edit().Limits[corev1.ResourceMemory] = limit
		}
	}
	if out == asked {
		return nil
	}
	return out
}
