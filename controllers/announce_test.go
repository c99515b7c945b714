package controllers

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/reference"
)

// Events on two containers of a pod are about two things: else the recorder would make
// one of them, with the note of the first.
func TestAbout(t *testing.T) {
	pod := burstable("p", "64Mi", "128Mi")
	pod.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "debug"}}}
	for container, want := range map[string]string{
		"app": "spec.containers{app}", "init": "spec.initContainers{init}", "debug": "spec.ephemeralContainers{debug}",
		"": "", "of no such name": "",
	} {
		got, err := reference.GetReference(scheme.Scheme, about(pod, container))
		if err != nil {
			t.Fatal(err)
		}
		expected := &corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: "default", Name: "p", UID: "uid-1", FieldPath: want}
		if diff := cmp.Diff(expected, got); diff != "" {
			t.Errorf("%q: -want +got:\n%s", container, diff)
		}
	}
}
