package qos

import (
	corev1 "k8s.io/api/core/v1"
	resourcehelper "k8s.io/component-helpers/resource"
)

// Active reports whether a pod has, or will have, cgroups: a pod whose phase is
// Succeeded or Failed does not, and the kubelet leaves it out of its sums. A pod
// that is being deleted counts until it is gone.
func Active(pod *corev1.Pod) bool {
	return pod.Status.Phase != corev1.PodSucceeded && pod.Status.Phase != corev1.PodFailed
}

// Class returns the QoS class that the API server gave the pod, or, for a
// manifest that no API server has seen, the one it would give.
func Class(pod *corev1.Pod) corev1.PodQOSClass {
	if pod.Status.QOSClass != "" {
		return pod.Status.QOSClass
	}
	if resourcehelper.IsPodLevelResourcesSet(pod) {
		return classOf(pod.Spec.Resources)
	}
	var class corev1.PodQOSClass
	for _, containers := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range containers {
			class = common(class, classOf(&containers[i].Resources))
		}
	}
	return class
}

// classOf is the class of one container: Guaranteed when cpu and memory have
// limits and requests that equal them, BestEffort when neither has either.
func classOf(r *corev1.ResourceRequirements) corev1.PodQOSClass {
	var class corev1.PodQOSClass
	for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
		request, limit := r.Requests[name], r.Limits[name]
		switch {
		case request.IsZero() && limit.IsZero():
			class = common(class, corev1.PodQOSBestEffort)
		case request.Cmp(limit) == 0:
			class = common(class, corev1.PodQOSGuaranteed)
		default:
			class = corev1.PodQOSBurstable
		}
	}
	return class
}

// common is the class of a whole whose parts have class a (none so far: empty)
// and b.
func common(a, b corev1.PodQOSClass) corev1.PodQOSClass {
	if a == "" || a == b {
		return b
	}
	return corev1.PodQOSBurstable
}

// SetDefaults does to a pod what the API server does before it stores one: a
// request that is not given becomes the limit. An explicit 0 stays. Pod-level
// resources are completed as 1.37 does it, unless the pod comes from an API
// server: an older one completes less, and what it left out is not there.
func SetDefaults(pod *corev1.Pod) {
	for _, containers := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range containers {
			r := &containers[i].Resources
			for name, limit := range r.Limits {
				if _, ok := r.Requests[name]; ok {
					continue
				}
				if r.Requests == nil {
					r.Requests = corev1.ResourceList{}
				}
				r.Requests[name] = limit.DeepCopy()
			}
		}
	}
	if pod.Status.QOSClass == "" && resourcehelper.IsPodLevelResourcesSet(pod) {
		setPodLevelDefaults(pod)
	}
}

// setPodLevelDefaults completes the cpu and memory of a pod's spec.resources, as
// DefaultPodLevelResources in pkg/api/pod/util.go: a request that is not given is
// the sum of the containers', or else the limit; a limit that is not given is the
// sum of the containers' where all have one, but not below the request.
func setPodLevelDefaults(pod *corev1.Pod) {
	r := pod.Spec.Resources
	if r.Requests == nil {
		r.Requests = corev1.ResourceList{}
	}
	if r.Limits == nil {
		r.Limits = corev1.ResourceList{}
	}
	requests := resourcehelper.AggregateContainerRequests(pod, resourcehelper.PodResourcesOptions{})
	limits := resourcehelper.AggregateContainerLimits(pod, resourcehelper.PodResourcesOptions{})
	for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
		request, requested := r.Requests[name]
		limit, limited := r.Limits[name]
		if !requested {
			if request, requested = requests[name]; !requested {
				request, requested = limit, limited
			}
		}
		if requested {
			r.Requests[name] = request.DeepCopy()
		}
		if requested && !limited && everyContainerLimits(pod, name) {
			if limit = limits[name]; limit.Cmp(request) < 0 {
				limit = request
			}
			r.Limits[name] = limit.DeepCopy()
		}
	}
}

func everyContainerLimits(pod *corev1.Pod, name corev1.ResourceName) bool {
	for _, containers := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range containers {
			if _, ok := containers[i].Resources.Limits[name]; !ok {
				return false
			}
		}
	}
	return true
}
