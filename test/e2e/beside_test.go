//go:build e2e

package e2e

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/memqos/memqos/hack/nodeagent"
	"github.com/memqos/memqos/hack/testnode"
	"github.com/memqos/memqos/test/conformance"
)

// besidePods is a manifest of Burstable pods.
func besidePods(names ...string) []byte {
	var b strings.Builder
	for i, name := range names {
		fmt.Fprintf(&b, `---
apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: default}
spec:
  terminationGracePeriodSeconds: 1
  hostNetwork: true
  containers:
  - name: app
    image: docker.io/memqos/workload:test
    imagePullPolicy: Never
    args: [sleep]
    resources: {requests: {memory: %dMi}, limits: {memory: %dMi}}
`, name, 16+i, 64+4*i)
	}
	return []byte(b.String())
}

// besideHigh is memory.high of the pod at a place of the manifest, with a factor.
func besideHigh(place int, factor float64) string {
	request, limit := float64((16+place)<<20), float64((64+4*place)<<20)
	return fmt.Sprint(int64(request+(limit-request)*factor) / 4096 * 4096)
}

// Beside a kubelet whose own MemoryQoS writes, with another factor, memqos stops
// writing and the values are the kubelet's. Once the kubelet has its gate off,
// memqos takes them up again.
func TestBesideKubelet(t *testing.T) {
	if os.Getenv("MEMQOS_E2E_MATRIX") == "" {
		t.Skip("takes ten minutes: part of make e2e-matrix")
	}
	t.Parallel()
	node := bareNode(t, testnode.Options{
		Kubernetes: "1.27.4", CgroupDriver: "systemd",
		FeatureGates: map[string]bool{"MemoryQoS": true}, KubeletConfig: factor,
	})
	apply(t, node, besidePods("before-a", "before-b", "before-c"))
	before := takeSnapshot(t, node)
	if got := before["container default/before-a/app"]["memory.high"]; got == "max" {
		t.Fatal("the kubelet writes no memory.high: it is no double writer")
	}

	agent := installAgent(t, node, "memoryThrottlingFactor: 0.5\n")
	together := time.Now()
	apply(t, node, besidePods("before-a", "before-b", "before-c", "with-a", "with-b"))
	time.Sleep(time.Until(together.Add(time.Minute)))
	writes := metric(t, agent, "memqos_writes_total", map[string]string{"result": "written"})
	apply(t, node, besidePods("before-a", "before-b", "before-c", "with-a", "with-b", "later"))
	time.Sleep(time.Until(together.Add(5 * time.Minute)))

	if now := metric(t, agent, "memqos_writes_total", map[string]string{"result": "written"}); now != writes {
		t.Errorf("%v writes between the first minute and the fifth, want none", now-writes)
	}
	t.Logf("%v writes in the first minute beside a kubelet that writes itself", writes)
	after := takeSnapshot(t, node)
	if err := same(differences(pick(before, "before-"), pick(after, "before-"))); err != nil {
		t.Error(err)
	}
	// By the kubelet's factor, not by memqos's.
	for place, pod := range map[int]string{3: "with-a", 5: "later"} {
		if got, want := after["container default/"+pod+"/app"]["memory.high"], besideHigh(place, 0.9); got != want {
			t.Errorf("memory.high of %s is %s, want the kubelet's %s", pod, got, want)
		}
	}
	for _, file := range []string{"memory.min", "memory.high"} {
		if left := metric(t, agent, "memqos_file_left_to_kubelet", map[string]string{"file": file}); left != 1 {
			t.Errorf("memqos_file_left_to_kubelet{file=%q} is %v, want 1", file, left)
		}
	}
	wantEvent(t, node, "Node", node.Name(), "MemoryQoSStandDown")

	config, err := node.ReadFile(t.Context(), "/etc/kubernetes/kubelet.json")
	if err != nil {
		t.Fatal(err)
	}
	off := bytes.ReplaceAll(config, []byte(`"MemoryQoS": true`), []byte(`"MemoryQoS": false`))
	off = bytes.ReplaceAll(off, []byte(`"memoryThrottlingFactor": 0.9`), []byte(`"memoryThrottlingFactor": 0.8`)) // the only one without the gate
	if bytes.Equal(config, off) {
		t.Fatalf("the kubelet's configuration names no gate: %s", config)
	}
	if err := node.WriteFile(t.Context(), "/etc/kubernetes/kubelet.json", off, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := node.Run(t.Context(), "systemctl", "restart", "kubelet"); err != nil {
		t.Fatal(err)
	}
	apply(t, node, besidePods("before-a", "before-b", "before-c", "with-a", "with-b", "later", "alone-a", "alone-b"))
	eventually(t, "memqos writes again", func() error {
		s := takeSnapshot(t, node)
		if got, want := s["container default/alone-b/app"]["memory.high"], besideHigh(7, 0.5); got != want {
			return fmt.Errorf("memory.high of alone-b is %s, want %s", got, want)
		}
		return nil
	})
	wantEvent(t, node, "Node", node.Name(), "MemoryQoSResumed")
}

// pick returns what a snapshot has of pods whose names begin so.
func pick(s conformance.Snapshot, prefix string) conformance.Snapshot {
	out := conformance.Snapshot{}
	for name, files := range s {
		if strings.Contains(name, " default/"+prefix) {
			out[name] = files
		}
	}
	return out
}

func metric(t *testing.T, agent *nodeagent.Agent, name string, labels map[string]string) float64 {
	t.Helper()
	v, err := agent.Metric(t.Context(), name, labels)
	if err != nil {
		t.Fatal(err)
	}
	return v
}
