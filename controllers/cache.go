package controllers

import (
	"net/http"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/memqos/memqos/cgroup"
	"github.com/memqos/memqos/qos"
)

// newScheme returns a scheme of the core group alone: all that memqos speaks.
func newScheme() (*runtime.Scheme, error) {
	s := runtime.NewScheme()
	return s, corev1.AddToScheme(s)
}

// staticMapper answers what discovery would: it spares every agent of a cluster
// that request, and lets one start while the API server is away.
func staticMapper(*rest.Config, *http.Client) (meta.RESTMapper, error) {
	m := meta.NewDefaultRESTMapper(nil)
	m.Add(corev1.SchemeGroupVersion.WithKind("Pod"), meta.RESTScopeNamespace)
	m.Add(corev1.SchemeGroupVersion.WithKind("Node"), meta.RESTScopeRoot)
	return m, nil
}

// podCache keeps the pods of one node, stripped to what is used, and hands them
// out without copying: nothing here changes a pod that it has read.
func podCache(nodeName string) cache.Options {
	return cache.Options{
		ReaderFailOnMissingInformer: true,
		ByObject: map[client.Object]cache.ByObject{
			&corev1.Pod{}: {
				Field:                 fields.OneTermEqualSelector("spec.nodeName", nodeName),
				Transform:             stripPod,
				UnsafeDisableDeepCopy: new(true),
			},
		},
	}
}

// stripPod drops from a pod what no decision depends on: most of its size.
func stripPod(in any) (any, error) {
	pod, ok := in.(*corev1.Pod)
	if !ok {
		return in, nil // a tombstone
	}
	out := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace:         pod.Namespace,
			Name:              pod.Name,
			UID:               pod.UID,
			ResourceVersion:   pod.ResourceVersion,
			DeletionTimestamp: pod.DeletionTimestamp,
			// All of them: a rule of a later configuration may ask for any.
			Labels: pod.Labels,
		},
		Spec: corev1.PodSpec{
			NodeName:          pod.Spec.NodeName,
			PriorityClassName: pod.Spec.PriorityClassName,
			Overhead:          pod.Spec.Overhead,
			Resources:         pod.Spec.Resources,
			InitContainers:    stripContainers(pod.Spec.InitContainers),
			Containers:        stripContainers(pod.Spec.Containers),
		},
		Status: corev1.PodStatus{
			Phase:                      pod.Status.Phase,
			Reason:                     pod.Status.Reason,
			QOSClass:                   pod.Status.QOSClass,
			Resources:                  pod.Status.Resources,
			InitContainerStatuses:      stripStatuses(pod.Status.InitContainerStatuses),
			ContainerStatuses:          stripStatuses(pod.Status.ContainerStatuses),
			EphemeralContainerStatuses: stripStatuses(pod.Status.EphemeralContainerStatuses),
		},
	}
	for key, v := range pod.Annotations {
		if key != cgroup.AnnotationConfigMirror && key != cgroup.AnnotationConfigHash && !strings.HasPrefix(key, qos.AnnotationPrefix) {
			continue
		}
		if out.Annotations == nil {
			out.Annotations = map[string]string{}
		}
		out.Annotations[key] = v
	}
	for i := range pod.Spec.EphemeralContainers {
		c := &pod.Spec.EphemeralContainers[i]
		out.Spec.EphemeralContainers = append(out.Spec.EphemeralContainers, corev1.EphemeralContainer{
			EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: c.Name, Resources: c.Resources},
		})
	}
	return out, nil
}

func stripContainers(in []corev1.Container) []corev1.Container {
	var out []corev1.Container
	for i := range in {
		out = append(out, corev1.Container{Name: in[i].Name, Resources: in[i].Resources, RestartPolicy: in[i].RestartPolicy})
	}
	return out
}

func stripStatuses(in []corev1.ContainerStatus) []corev1.ContainerStatus {
	var out []corev1.ContainerStatus
	for i := range in {
		out = append(out, corev1.ContainerStatus{Name: in[i].Name, ContainerID: in[i].ContainerID, Resources: in[i].Resources, State: stripState(in[i].State), LastTerminationState: stripState(in[i].LastTerminationState)})
	}
	return out
}

// isRunning stands for the state of every container that runs: since when is not used.
var isRunning = corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}

func stripState(in corev1.ContainerState) corev1.ContainerState {
	switch {
	case in.Running != nil:
		return isRunning
	case in.Terminated != nil:
		t := in.Terminated
		return corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: t.ExitCode, Reason: t.Reason, FinishedAt: t.FinishedAt, ContainerID: t.ContainerID}}
	}
	return corev1.ContainerState{}
}
