package cgroup

import (
	corev1 "k8s.io/api/core/v1"
)

// The annotations by which the API server shows a static pod (a mirror pod).
const (
	AnnotationConfigMirror = "kubernetes.io/config.mirror"
	AnnotationConfigHash   = "kubernetes.io/config.hash"
)

// PodUID returns the uid that stands in the path of a pod's cgroup. For a static
// pod it is not metadata.uid, which is that of the mirror pod, but the hash of
// its configuration. mirror tells which it was: an annotation is only a claim, as
// whoever may create pods may write one, so a cgroup found by it must be shown
// to hold a container of the pod's status before anything is written to it.
func PodUID(pod *corev1.Pod) (uid string, mirror bool) {
	if _, ok := pod.Annotations[AnnotationConfigMirror]; ok {
		return pod.Annotations[AnnotationConfigHash], true
	}
	return string(pod.UID), false
}

// ContainerIDs returns the containerID of each container that a pod's status
// names one for, by the container's name. Containers that have ended are among
// them: their cgroups are gone or going.
func ContainerIDs(pod *corev1.Pod) map[string]string {
	ids := map[string]string{}
	for _, statuses := range [][]corev1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses, pod.Status.EphemeralContainerStatuses} {
		for i := range statuses {
			if id := statuses[i].ContainerID; id != "" {
				ids[statuses[i].Name] = id
			}
		}
	}
	return ids
}
