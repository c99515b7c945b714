package plugin

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/memqos/memqos/memory"
	"github.com/memqos/memqos/qos"
	"github.com/memqos/memqos/status"
)

func webPod() *corev1.Pod {
	return &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"},
		Spec: corev1.PodSpec{NodeName: "node-000", Containers: []corev1.Container{
			{Name: "app", Resources: corev1.ResourceRequirements{
				Requests: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("64Mi")},
				Limits:   corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("128Mi")},
			}},
			{Name: "log"},
		}},
	}
}

// webStatus is a node on which much has happened to the pod.
func webStatus(node string) *status.NodeStatus {
	s := nodeStatus(node)
	at := func(ago time.Duration) time.Time { return s.Time.Add(-ago) }
	since := at(90 * time.Second)
	reasons := map[memory.File]string{memory.Min: "request 64Mi", memory.High: "raised by the stall guard", memory.Max: "limit 128Mi"}
	values := memory.Values{memory.Min: 64 << 20, memory.High: 120 << 20, memory.Max: 128 << 20}
	s.Cgroups = []status.Cgroup{
		{
			Level: qos.LevelPod, Namespace: "shop", Pod: "web", Verdict: status.Drifted, Since: &since, UsageBytes: 100 << 20,
			Wanted: memory.Values{memory.Min: 64 << 20}, Actual: memory.Values{memory.Min: 0, memory.Low: 0, memory.High: memory.Unlimited, memory.Max: memory.Unlimited},
			Reason:  map[memory.File]string{memory.Min: "the pod's effective request 64Mi", memory.Max: "left alone: not every container has a limit"},
			Changes: []status.Change{{Time: at(time.Second), File: memory.Min, By: status.ByReset, From: 64 << 20, To: 0, Count: 1}},
		},
		{
			Level: qos.LevelContainer, Namespace: "shop", Pod: "web", Container: "app", Verdict: status.Relaxed, Since: &since, UsageBytes: 96 << 20, Wanted: values, Actual: values, Reason: reasons,
			Relaxed:   &status.Relaxation{Planned: 100 << 20, Since: at(90 * time.Second), Why: "it lost 3.4s of the last 5.2s\x1b[2J"},
			Throttled: &status.Throttling{From: at(2 * time.Minute), HighEvents: 208, SomeUsec: 5900000, FullUsec: 4200000},
			Changes: []status.Change{
				{Time: at(90 * time.Second), File: memory.High, By: status.ByMemqos, From: 100 << 20, To: 120 << 20, Count: 1},
				{Time: at(3 * time.Minute), File: memory.High, By: status.ByForeign, From: 100 << 20, To: 99 << 20, Count: 4},
			},
		},
		{Level: qos.LevelContainer, Namespace: "shop", Pod: "web", Container: "log", Verdict: status.Pending, Wanted: values},
		{Level: qos.LevelContainer, Namespace: "shop", Pod: "web", Container: status.Sandbox, Verdict: status.Fulfilled, Actual: values},
		{Level: qos.LevelContainer, Namespace: "shop", Pod: "other", Container: "app", Verdict: status.Fulfilled, Actual: values},
	}
	s.Kills = []status.Kill{
		{Time: at(time.Hour), Namespace: "shop", Pod: "web", Container: "app", Cause: "ContainerLimit", Message: "128Mi of 128Mi"},
		{Time: at(time.Hour), Namespace: "shop", Pod: "other", Container: "app", Cause: "ContainerLimit", Message: "of another pod"},
	}
	return s
}

func TestExplain(t *testing.T) {
	pending := webPod()
	pending.Name, pending.Spec.NodeName = "pending", ""
	done := webPod()
	done.Name = "done"
	a := &api{nodes: 1, status: webStatus, objects: map[string]runtime.Object{
		"/api/v1/namespaces/shop/pods/web": webPod(), "/api/v1/namespaces/shop/pods/done": done, "/api/v1/namespaces/shop/pods/pending": pending,
	}}
	var out bytes.Buffer
	if err := run(t.Context(), t, a, &out, &out, "explain", "pod", "web"); err != nil {
		t.Fatal(err)
	}
	want := `Pod shop/web on node node-000, Burstable
  as a kubelet 1.27 would, factor 0.9, mode Enforce
The pod: Drifted for 1m30s, uses 100Mi
  memory.min  0, WANTED 64Mi = the pod's effective request 64Mi
  memory.max  max; left alone: not every container has a limit
  1s ago memory.min: 64Mi to 0 by reset
Container app: Relaxed for 1m30s, uses 96Mi
  memory.min  64Mi = request 64Mi
  memory.high 120Mi = raised by the stall guard
  memory.max  128Mi = limit 128Mi
  relaxed by the stall guard from 100Mi, 1m30s ago. it lost 3.4s of the last 5.2s?[2J
  throttled: 208 times over memory.high in the last 2m; waited for memory 5.9 s, all tasks at once 4.2 s
  1m30s ago memory.high: 100Mi to 120Mi by memqos
  3m ago memory.high: 100Mi to 99Mi by foreign, 4 times
Container log: Pending, no cgroup yet
Killed for memory 1h0m ago (ContainerLimit), app: 128Mi of 128Mi
memory.high of app by memoryThrottlingFactor  0.5: 96Mi  0.6: 104856Ki  0.7: 111408Ki  0.8: 117964Ki  0.9: 124516Ki  1: 128Mi
memory.high of log by memoryThrottlingFactor  0.5: max  0.6: max  0.7: max  0.8: max  0.9: max  1: max
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if got := a.requests.Load(); got != 3 {
		t.Errorf("%d requests, want 3", got)
	}
	out.Reset()
	if err := run(t.Context(), t, a, &out, &out, "explain", "pod/done"); err != nil {
		t.Fatal(err)
	}
	want = `Pod shop/done on node node-000, Burstable
  as a kubelet 1.27 would, factor 0.9, mode Enforce
  It has no cgroup: it is done, or the agent does not know it yet.
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("a pod that is done: -want +got:\n%s", diff)
	}
	err := run(t.Context(), t, a, &out, &out, "explain", "pod", "pending")
	if err == nil || err.Error() != "pod shop/pending is on no node yet" {
		t.Errorf("a pod that waits: %v", err)
	}
	// For machines: what the agent has told.
	out.Reset()
	if err := run(t.Context(), t, a, &out, &out, "explain", "pod", "web", "-o", "json"); err != nil {
		t.Fatal(err)
	}
	var s status.NodeStatus
	if err := json.Unmarshal(out.Bytes(), &s); err != nil || s.Node != "node-000" || len(s.Cgroups) != 5 {
		t.Errorf("%v in\n%s", err, out.String())
	}
}
