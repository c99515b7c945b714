package cgroup

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestPodUID(t *testing.T) {
	plain := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: "u", Annotations: map[string]string{AnnotationConfigHash: "hash"}}}
	if got, mirror := PodUID(plain); got != "u" || mirror {
		t.Errorf("ordinary pod: got %q, mirror %v", got, mirror)
	}
	static := plain.DeepCopy()
	static.Annotations[AnnotationConfigMirror] = "hash"
	if got, mirror := PodUID(static); got != "hash" || !mirror {
		t.Errorf("mirror pod: got %q, mirror %v", got, mirror)
	}
}

func TestContainerIDs(t *testing.T) {
	got := ContainerIDs(&corev1.Pod{Status: corev1.PodStatus{
		InitContainerStatuses:      []corev1.ContainerStatus{{Name: "init", ContainerID: "containerd://" + id}},
		ContainerStatuses:          []corev1.ContainerStatus{{Name: "app", ContainerID: "cri-o://" + id}, {Name: "waiting"}},
		EphemeralContainerStatuses: []corev1.ContainerStatus{{Name: "debug", ContainerID: "docker://" + id}},
	}})
	want := map[string]string{"init": "containerd://" + id, "app": "cri-o://" + id, "debug": "docker://" + id}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}
