package qos

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/memqos/memqos/memory"
)

func TestThrottlingsOf(t *testing.T) {
	const mi = 1 << 20
	policy := Policy{node: Node{Allocatable: 4 << 30, PageSize: 4096}}
	for _, tt := range []struct {
		name           string
		request, limit string
		high           memory.Value
		want           []Throttling
	}{
		{"1.27 at 0.9", "64Mi", "128Mi", 127504384, []Throttling{{22, 0.95}, {27, 0.9}}},
		{"1.27 at 0.55", "64Mi", "128Mi", 104017920, []Throttling{{27, 0.55}}},
		{"1.22 at 0.8", "64Mi", "128Mi", 107372544, []Throttling{{22, 0.8}, {27, 0.6}}},
		{"either", "64Mi", "128Mi", 96 * mi, []Throttling{{22, 0.75}, {27, 0.5}}},
		{"no limit", "64Mi", "0", 3872178176, []Throttling{{27, 0.9}}},
		{"a hand's", "64Mi", "128Mi", 100*mi + 4096*3, nil},
		{"below the request", "64Mi", "128Mi", 4096, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			pod := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Resources: corev1.ResourceRequirements{
				Requests: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse(tt.request)},
				Limits:   corev1.ResourceList{corev1.ResourceMemory: resource.MustParse(tt.limit)},
			}}}}}
			if diff := cmp.Diff(tt.want, policy.ThrottlingsOf(pod, "app", tt.high)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
	if got := policy.ThrottlingsOf(&corev1.Pod{}, "app", 4096); got != nil {
		t.Errorf("%v of a container that the pod has not", got)
	}
}
