//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/memqos/memqos/config"
	"github.com/memqos/memqos/hack/testnode"
	"github.com/memqos/memqos/qos"
)

// The same pods under a 1.27.4 kubelet with the gate on and under memqos beside a
// kubelet with the gate off: every file of every cgroup is equal. Then what
// happens on the node with memqos while pods come, restart and go.
func TestNode(t *testing.T) {
	for _, driver := range []config.CgroupDriver{config.Systemd, config.Cgroupfs} {
		t.Run(string(driver), func(t *testing.T) {
			oracle, allocatable := recordOracle(t, driver)

			node := startNode(t, testnode.Options{Kubernetes: "1.27.4", CgroupDriver: string(driver), FeatureGates: map[string]bool{"MemoryQoS": false}})
			before := takeSnapshot(t, node)
			if diff := differences(oracle, before); len(diff) == 0 {
				t.Fatal("there is nothing to do: without memqos the node already holds the oracle's values")
			} else {
				t.Logf("without memqos %d files differ from the oracle's", len(diff))
			}
			agent := installAgent(t, node, "")
			eventually(t, "parity", func() error { return same(differences(oracle, takeSnapshot(t, node))) })
			t.Logf("parity: %d containers, %d sandboxes, %d pods, kubepods and its classes, 4 files each: equal",
				oracle.count("container"), oracle.count("sandbox"), oracle.count("pod"))

			// Subtests do not run in parallel: they share the node.
			t.Run("plan", func(t *testing.T) { testPlan(t, oracle, allocatable) })
			t.Run("inspect", func(t *testing.T) { testInspect(t, agent) })
			t.Run("churn", func(t *testing.T) { testChurn(t, node, agent) })
			t.Run("restart", func(t *testing.T) { testRestart(t, node, agent) })
			t.Run("unsupported", func(t *testing.T) { testLateKubepods(t, node, agent) })
		})
	}
}

// recordOracle returns what a kubelet with the gate on makes of the pods, and its
// node allocatable.
func recordOracle(t *testing.T, driver config.CgroupDriver) (oracle snapshot, allocatable string) {
	t.Run("oracle", func(t *testing.T) {
		node := startNode(t, testnode.Options{
			Kubernetes: "1.27.4", CgroupDriver: string(driver),
			FeatureGates:  map[string]bool{"MemoryQoS": true},
			KubeletConfig: map[string]any{"memoryThrottlingFactor": 0.9},
		})
		// The kubelet writes the sums when it makes a pod's cgroup, and else once a
		// minute: wait until they are those of all pods.
		var sum string
		eventually(t, "the kubelet's sums", func() error {
			oracle = takeSnapshot(t, node)
			allocatable = oracle["kubepods"]["memory.max"]
			sum = planOf(t, allocatable)["kubepods"]["memory.min"]
			if got := oracle["kubepods"]["memory.min"]; got != sum {
				return fmt.Errorf("kubepods memory.min is %s, the sum of the requests is %s", got, sum)
			}
			return nil
		})
		if got, want := oracle["container default/burstable/app"]["memory.high"], "127504384"; got != want {
			t.Fatalf("the oracle is none: memory.high of a container with 64Mi/128Mi is %s, want %s", got, want)
		}
		if pods := oracle.count("pod"); pods < 15 {
			t.Fatalf("%d pods, want at least 15", pods)
		}
		for name := range oracle {
			if strings.HasPrefix(name, "unknown") {
				t.Errorf("the oracle has a cgroup of no pod: %s", name)
			}
		}
	})
	if t.Failed() {
		t.FailNow()
	}
	return oracle, allocatable
}

// planOf runs memqos plan on the manifests, without a cluster.
func planOf(t *testing.T, allocatable string) snapshot {
	t.Helper()
	var in []string
	for _, name := range []string{"pods.yaml", "init-running.yaml", "static-burstable.yaml", "static-guaranteed.yaml"} {
		in = append(in, string(read(t, name)))
	}
	cmd := exec.CommandContext(t.Context(), "go", "run", "./cmd/memqos", "plan", "-f", "-", "-o", "json", "--page-size", "4096", "--node-allocatable-memory", allocatable)
	cmd.Dir = filepath.Clean(root)
	cmd.Stdin = strings.NewReader(strings.Join(in, "\n---\n"))
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("memqos plan: %v\n%s", err, stderr.String())
	}
	var plan qos.Plan
	if err := json.Unmarshal(out, &plan); err != nil {
		t.Fatal(err)
	}
	s := snapshot{}
	for _, c := range plan.Cgroups {
		name := ""
		switch c.Level {
		case qos.LevelNode:
			name = "kubepods"
		case qos.LevelQOS:
			name = strings.ToLower(string(c.QOSClass))
		case qos.LevelPod:
			name = "pod " + c.Namespace + "/" + c.Pod
		case qos.LevelContainer:
			name = "container " + c.Namespace + "/" + c.Pod + "/" + c.Container
		}
		s[name] = map[string]string{}
		for file, value := range c.Values {
			s[name][string(file)] = value.String()
		}
	}
	return s
}

// testPlan compares what memqos plan prints with what the oracle's kernel holds.
func testPlan(t *testing.T, oracle snapshot, allocatable string) {
	plan := planOf(t, allocatable)
	files := 0
	for name, got := range oracle {
		planned, ok := plan[name]
		if !ok {
			if !strings.HasPrefix(name, "sandbox ") && name != "besteffort" {
				t.Errorf("%s is not in the plan", name)
			}
			continue
		}
		for file, want := range planned {
			files++
			if got[file] != want {
				t.Errorf("%s: %s is planned as %s, the kubelet wrote %s", name, file, want, got[file])
			}
		}
	}
	var absent []string
	for name := range plan {
		if _, ok := oracle[name]; !ok {
			absent = append(absent, name)
		}
	}
	slices.Sort(absent)
	// Containers that have ended or not begun, and the pod that is done.
	if want := []string{"container default/done/app", "container default/init-peak/first", "container default/init-peak/second", "container default/init-running/app", "pod default/done"}; !slices.Equal(absent, want) {
		t.Errorf("planned and not there: %v, want %v", absent, want)
	}
	t.Logf("%d planned values equal the oracle's", files)
}
