package qos

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/memqos/memqos/config"
)

func benchPods(n int) []corev1.Pod {
	pods := make([]corev1.Pod, n)
	for i := range pods {
		pods[i] = corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprintf("p-%d", i)},
			Status:     corev1.PodStatus{Phase: corev1.PodRunning, QOSClass: corev1.PodQOSBurstable},
		}
		for _, name := range []string{"app", "sidecar"} {
			pods[i].Spec.Containers = append(pods[i].Spec.Containers, corev1.Container{Name: name, Resources: corev1.ResourceRequirements{
				Requests: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("64Mi")},
				Limits:   corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("128Mi")},
			}})
		}
	}
	return pods
}

func BenchmarkPlan(b *testing.B) {
	c, err := config.Load("")
	if err != nil {
		b.Fatal(err)
	}
	policy := NewPolicy(c, Node{Allocatable: 8 << 30, Capacity: 16 << 30, PageSize: 4096})
	pods := benchPods(500)
	b.Run("pod", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if policy.Pod(&pods[0]).Values == nil || len(policy.Containers(&pods[0])) != 2 {
				b.Fatal("no plan")
			}
		}
	})
	for _, n := range []int{110, 500} {
		b.Run(fmt.Sprintf("node/pods=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if len(policy.Node(pods[:n])) == 0 {
					b.Fatal("no plan")
				}
			}
		})
	}
}
