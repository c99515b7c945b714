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

	"github.com/memqos/memqos/qos"
)

// The same pods under a kubelet with the gate on and under memqos beside a kubelet
// of the same release with the gate off: every file of every cgroup is equal. Then
// what happens on the node with memqos while pods come, restart and go.
func TestNode(t *testing.T) {
	for _, c := range chosenColumns() {
		t.Run(c.name, func(t *testing.T) {
			oracle := recordOracle(t, c)

			node := c.start(t, false)
			before := differences(oracle, takeSnapshot(t, node))
			if len(before) == 0 {
				t.Fatal("there is nothing to do: without memqos the node already holds the oracle's values")
			}
			t.Logf("without memqos %d files differ from the oracle's", len(before))
			agent := installAgent(t, node, c.agent)
			eventually(t, "parity", func() error { return same(differences(oracle, takeSnapshot(t, node))) })
			t.Logf("parity: %d containers, %d sandboxes, %d pods, kubepods and its classes, 4 files each: equal",
				oracle.count("container"), oracle.count("sandbox"), oracle.count("pod"))

			t.Run("plan", func(t *testing.T) { testPlan(t, c, oracle) })
			t.Run("inspect", func(t *testing.T) { testInspect(t, agent) })
			if c.life {
				t.Run("churn", func(t *testing.T) { testChurn(t, node, agent) })
				t.Run("restart", func(t *testing.T) { testRestart(t, node, agent) })
				t.Run("unsupported", func(t *testing.T) { testLateKubepods(t, node, agent) })
			}
		})
	}
}

// recordOracle returns what a kubelet with the gate on makes of the pods.
func recordOracle(t *testing.T, c column) (oracle snapshot) {
	t.Run("oracle", func(t *testing.T) {
		node := c.start(t, true)
		// The kubelet writes the sums when it makes a pod's cgroup, and else once a
		// minute: wait until they are those of all pods.
		eventually(t, "the kubelet's sums", func() error {
			oracle = takeSnapshot(t, node)
			sum := planOf(t, c, oracle)["kubepods"]["memory.min"]
			if got := oracle["kubepods"]["memory.min"]; got != sum {
				return fmt.Errorf("kubepods memory.min is %s, the sum of the requests is %s", got, sum)
			}
			return nil
		})
		if got := oracle["container default/burstable/app"]["memory.high"]; got != c.high {
			t.Fatalf("the oracle is none: memory.high of a container with 64Mi/128Mi is %s, want %s", got, c.high)
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
	return oracle
}

// planOf runs memqos plan on the manifests, without a cluster. Of the oracle it
// knows node allocatable, which a kubelet writes into kubepods' memory.max.
func planOf(t *testing.T, c column, oracle snapshot) snapshot {
	t.Helper()
	var in []string
	for _, name := range append([]string{"pods.yaml", "init-running.yaml", "static-burstable.yaml", "static-guaranteed.yaml"}, c.manifests...) {
		in = append(in, string(read(t, name)))
	}
	cmd := exec.CommandContext(t.Context(), "go", append([]string{
		"run", "./cmd/memqos", "plan", "-f", "-", "-o", "json", "--page-size", "4096", "--node-allocatable-memory", oracle["kubepods"]["memory.max"],
	}, c.plan...)...)
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
	for _, planned := range plan.Cgroups {
		name := ""
		switch planned.Level {
		case qos.LevelNode:
			name = "kubepods"
		case qos.LevelQOS:
			name = strings.ToLower(string(planned.QOSClass))
		case qos.LevelPod:
			name = "pod " + planned.Namespace + "/" + planned.Pod
		case qos.LevelContainer:
			name = "container " + planned.Namespace + "/" + planned.Pod + "/" + planned.Container
		}
		s[name] = map[string]string{}
		for file, value := range planned.Values {
			s[name][string(file)] = value.String()
		}
	}
	return s
}

// testPlan compares what memqos plan prints with what the oracle's kernel holds.
func testPlan(t *testing.T, c column, oracle snapshot) {
	plan := planOf(t, c, oracle)
	files := 0
	for name, got := range oracle {
		planned, ok := plan[name]
		if !ok {
			if !strings.HasPrefix(name, "sandbox ") && !strings.HasSuffix(name, ", crun's own") && name != "besteffort" {
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
