package controllers

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/memqos/memqos/cgroup/cgrouptest"
	"github.com/memqos/memqos/memory"
)

// benchPods hand out pods as the cache does: without copying what is in them.
type benchPods []corev1.Pod

func (b benchPods) Get(_ context.Context, key client.ObjectKey, out client.Object, _ ...client.GetOption) error {
	for i := range b {
		if b[i].Name == key.Name {
			*out.(*corev1.Pod) = b[i]
			return nil
		}
	}
	return fmt.Errorf("no pod %s", key)
}

func (b benchPods) List(_ context.Context, out client.ObjectList, _ ...client.ListOption) error {
	out.(*corev1.PodList).Items = b
	return nil
}

// benchWorld is a node with pods of so many containers each.
func benchWorld(b *testing.B, pods, containers int) *world {
	b.Helper()
	var tree strings.Builder
	tree.WriteString("kubepods 0 0 max 8589934592\nkubepods/burstable\n")
	var list benchPods
	for i := range pods {
		pod := corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprintf("p-%d", i), UID: types.UID(fmt.Sprintf("00000000-0000-4000-8000-%012d", i))},
			Status:     corev1.PodStatus{Phase: corev1.PodRunning, QOSClass: corev1.PodQOSBurstable},
		}
		fmt.Fprintf(&tree, "kubepods/burstable/pod%s\nkubepods/burstable/pod%s/%064x\n", pod.UID, pod.UID, 1<<40+i)
		for j := range containers {
			name, id := fmt.Sprintf("c-%d", j), fmt.Sprintf("%064x", i<<8+j)
			pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{Name: name, Resources: corev1.ResourceRequirements{
				Requests: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("64Mi")},
				Limits:   corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("128Mi")},
			}})
			pod.Status.ContainerStatuses = append(pod.Status.ContainerStatuses, corev1.ContainerStatus{Name: name, ContainerID: "containerd://" + id, State: isRunning})
			fmt.Fprintf(&tree, "kubepods/burstable/pod%s/%s 0 0 max 134217728\n", pod.UID, id)
		}
		list = append(list, pod)
	}
	w := newWorld(b, tree.String())
	w.pod.pods, w.node.pods = list, list
	for i := range list {
		w.mustReconcilePod(list[i].Name)
	}
	w.reconcileNode()
	return w
}

// A reconcile that finds nothing to do costs what the pod's containers cost, with
// any number of other pods.
func BenchmarkReconcileUnchanged(b *testing.B) {
	for _, size := range []struct{ pods, containers int }{{110, 1}, {110, 2}, {500, 2}, {110, 8}} {
		b.Run(fmt.Sprintf("pods=%d/containers=%d", size.pods, size.containers), func(b *testing.B) {
			w := benchWorld(b, size.pods, size.containers)
			req := ctrl.Request{NamespacedName: client.ObjectKey{Namespace: "default", Name: "p-0"}}
			b.ReportAllocs()
			for b.Loop() {
				if r, err := w.pod.Reconcile(b.Context(), req); err != nil || r.RequeueAfter != 0 {
					b.Fatal(r, err)
				}
			}
		})
	}
}

// Somebody has overwritten one file of one container.
func BenchmarkReconcileOneChange(b *testing.B) {
	w := benchWorld(b, 110, 2)
	req := ctrl.Request{NamespacedName: client.ObjectKey{Namespace: "default", Name: "p-0"}}
	file := fmt.Sprintf("%s/kubepods/burstable/pod00000000-0000-4000-8000-%012d/%064x/memory.high", w.dir, 0, 0)
	want := cgrouptest.Read(b, file)
	ctx := ctrl.LoggerInto(b.Context(), logr.Discard())
	b.ReportAllocs()
	for b.Loop() {
		// Else the benchmark would be a fight, and memqos would stand down.
		clear(w.pod.writer.contests.files)
		b.StopTimer()
		cgrouptest.Write(b, file, "max")
		b.StartTimer()
		if _, err := w.pod.Reconcile(ctx, req); err != nil {
			b.Fatal(err)
		}
	}
	if got := cgrouptest.Read(b, file); got != want {
		b.Fatalf("memory.high is %s, want %s", got, want)
	}
}

// The protection of a class was reset: the answer does not depend on how many pods there are.
func BenchmarkReflex(b *testing.B) {
	for _, pods := range []int{110, 500} {
		b.Run(fmt.Sprintf("pods=%d", pods), func(b *testing.B) {
			w := benchWorld(b, pods, 2)
			tree, file := w.surveyor.site.Load().tree, filepath.Join(w.dir, "kubepods/burstable/memory.min")
			want := cgrouptest.Read(b, file)
			b.ReportAllocs()
			for b.Loop() {
				clear(w.pod.writer.contests.files)
				b.StopTimer()
				cgrouptest.Write(b, file, "0")
				b.StartTimer()
				w.pod.writer.reflex(logr.Discard(), tree, "kubepods/burstable", memory.Min)
			}
			if got := cgrouptest.Read(b, file); got != want || want == "0" {
				b.Fatalf("memory.min is %s, want %s", got, want)
			}
		})
	}
}

// The sums at kubepods and the classes are over all pods.
func BenchmarkReconcileNode(b *testing.B) {
	for _, pods := range []int{110, 500} {
		b.Run(fmt.Sprintf("pods=%d", pods), func(b *testing.B) {
			w := benchWorld(b, pods, 2)
			req := ctrl.Request{NamespacedName: client.ObjectKey{Name: "n"}}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := w.node.Reconcile(b.Context(), req); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
