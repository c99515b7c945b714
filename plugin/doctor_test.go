package plugin

import (
	"bytes"
	"encoding/json"
	"net/http"
	"regexp"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/memqos/memqos/memory"
	"github.com/memqos/memqos/status"
)

// Every node has its findings; one that is not served makes the command fail.
func TestDoctor(t *testing.T) {
	list := &corev1.NodeList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "NodeList"}}
	for i := range 6 {
		ready := corev1.ConditionTrue
		if i == 1 {
			ready = corev1.ConditionUnknown
		}
		list.Items = append(list.Items, corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: nodeName(i)}, Status: corev1.NodeStatus{
			NodeInfo: corev1.NodeSystemInfo{KubeletVersion: "v1.27.4"}, Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: ready}},
		}})
	}
	a := &api{
		nodes: 5, objects: map[string]runtime.Object{"/api/v1/nodes": list},
		answers: func(r *http.Request, i int) {
			if i == 1 { // dead, and its pod not yet known not to be Ready
				<-r.Context().Done()
			}
		},
		status: func(node string) *status.NodeStatus {
			s := nodeStatus(node)
			switch node {
			case nodeName(4):
				s.Kind = "Pod"
			case nodeName(2):
				s.Agent.Idle, s.Agent.IdleMessage, s.Cgroups = "KernelTooOld", "Linux 5.4 has no memory.events.local", nil
			case nodeName(3):
				s.Machine.Pressure, s.Machine.SwapBytes = false, 1<<30
				s.Machine.MountOptions = []string{"nsdelegate"}
				s.Agent.Watching = false
				s.Agent.Refused = "cgroupRoot: needs a restart"
				s.Agent.KubeletConfigured, s.Agent.LeftToKubelet = []memory.File{memory.Min, memory.High}, []memory.File{memory.High}
				s.Agent.LastPass = nil
				s.Agent.Started = s.Time.Add(-10 * time.Minute)
				s.Cgroups[0].Verdict, s.Cgroups[1].Verdict = status.Drifted, status.Relaxed
			}
			return s
		},
	}
	var out bytes.Buffer
	err := run(t.Context(), t, a, &out, &out, "doctor")
	if err == nil || err.Error() != "not every node is served" {
		t.Errorf("the error is %v", err)
	}
	want := `NODE  FINDING  WHAT TO DO
node-000  OK  served: kernel 6.1.0, cgroup v2 (systemd driver), kubelet v1.27.4, memqos test, no swap
node-000  OK  the kubelet's own MemoryQoS is not seen to write
node-000  OK  2 cgroups hold what is wanted
node-001  FAIL  the agent memqos-node-001: no answer within 1s (not ready)  the node is not ready: see kubectl describe node node-001
node-002  FAIL  not served: KernelTooOld: Linux 5.4 has no memory.events.local  Linux 5.8 or later is needed
node-003  OK  served: kernel 6.1.0, cgroup v2 (systemd driver), kubelet v1.27.4, memqos test, swap 1Gi
node-003  WARN  the kernel counts no pressure (PSI): the stall guard goes by events and progress alone  boot it with psi=1
node-003  NOTE  cgroup2 is mounted without memory_recursiveprot; some container may have remounted it  none needed: memqos sets protection at every level
node-003  WARN  the kernel does not tell of every cgroup: overwrites are found by polling, every 5 s  raise fs.inotify.max_user_watches and max_user_instances
node-003  WARN  a changed configuration is not in use: cgroupRoot: needs a restart  correct it, or restart the agents: kubectl rollout restart
node-003  NOTE  the kubelet's configuration turns on its own MemoryQoS: memory.min, memory.high  decide who does it: docs/operations.md
node-003  NOTE  the kubelet's own MemoryQoS writes memory.high: memqos leaves them to it  decide who does it: featureGates MemoryQoS=false in the kubelet's configuration leaves it to memqos
node-003  WARN  no full pass has ended since the agent started, 10m ago  look at the agent's log
node-003  WARN  1 cgroups do not hold what is wanted  kubectl memqos top -A --node node-003, then explain: who wrote?
node-003  WARN  1 containers stood still at memory.high and were let go  more memory, or another factor: kubectl memqos top -A --node node-003
node-004  FAIL  the agent memqos-node-004: the agent's answer is a "Pod" of "memqos.io/v1alpha1", want a NodeStatus of memqos.io/v1alpha1  kubectl -n memqos describe pod memqos-node-004
node-005  FAIL  no agent runs there  look at the DaemonSet's nodeSelector, affinity and tolerations, and at its events
`
	// A column is as wide as its widest cell, the last one too.
	got := regexp.MustCompile(` +\n`).ReplaceAllString(out.String(), "\n")
	got = regexp.MustCompile(` {2,}`).ReplaceAllString(got, "  ")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if n := a.requests.Load(); n != 7 {
		t.Errorf("%d requests, want one for the nodes, one for the agents and 5", n)
	}
	// A cluster that is fit.
	list.Items, a.nodes = list.Items[:1], 1
	out.Reset()
	if err := run(t.Context(), t, a, &out, &out, "doctor", "-o", "json"); err != nil {
		t.Error(err)
	}
	var findings []Finding
	if err := json.Unmarshal(out.Bytes(), &findings); err != nil || len(findings) != 3 {
		t.Errorf("%v in\n%s", err, out.String())
	}
}
