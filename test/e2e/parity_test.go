//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/memqos/memqos/test/conformance"
)

// The same pods under a kubelet with the gate on and under memqos beside a kubelet
// of the same release with the gate off: every file of every cgroup is equal. Then
// what happens on the node with memqos while pods come, restart and go.
func TestNode(t *testing.T) {
	for _, c := range chosenColumns() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel() // one emulated processor to each of the machine's
			oracle := runOracle(t, c)

			node := c.start(t, false)
			before := differences(oracle.Cgroups, takeSnapshot(t, node))
			if len(before) == 0 {
				t.Fatal("there is nothing to do: without memqos the node already holds the oracle's values")
			}
			t.Logf("without memqos %d files differ from the oracle's", len(before))
			agent := installAgent(t, node, c.agent)
			eventually(t, "parity", func() error { return same(differences(oracle.Cgroups, takeSnapshot(t, node))) })
			t.Logf("parity: %d containers, %d sandboxes, %d pods, kubepods and its classes, 4 files each: equal",
				oracle.Cgroups.Count("container"), oracle.Cgroups.Count("sandbox"), oracle.Cgroups.Count("pod"))

			t.Run("plan", func(t *testing.T) { testPlan(t, oracle) })
			t.Run("debug", func(t *testing.T) { testDebug(t, node, c) })
			t.Run("inspect", func(t *testing.T) { testInspect(t, agent) })
			if c.life {
				t.Run("churn", func(t *testing.T) { testChurn(t, node) })
				t.Run("restart", func(t *testing.T) { testRestart(t, node, agent) })
				t.Run("unsupported", func(t *testing.T) { testLateKubepods(t, node, agent) })
			}
		})
	}
}

// baseManifests are what every column has.
var baseManifests = []string{"pods.yaml", "init-running.yaml", "static-burstable.yaml", "static-guaranteed.yaml"}

// runOracle returns what a kubelet with the gate on makes of the pods.
func runOracle(t *testing.T, c column) conformance.Record {
	r := conformance.Record{Kubelet: c.node.Kubernetes, Node: c.layout, Manifests: slices.Concat(baseManifests, c.manifests), PlanFlags: c.plan}
	t.Run("oracle", func(t *testing.T) {
		node := c.start(t, true)
		// The kubelet writes the sums when it makes a pod's cgroup, and else once a
		// minute: wait until they are those of all pods.
		eventually(t, "the kubelet's sums", func() error {
			r.Cgroups = takeSnapshot(t, node)
			sum := plan(t, r)["kubepods"]["memory.min"]
			if got := r.Cgroups["kubepods"]["memory.min"]; got != sum {
				return fmt.Errorf("kubepods memory.min is %s, the sum of the requests is %s", got, sum)
			}
			return nil
		})
		if got := r.Cgroups["container default/burstable/app"]["memory.high"]; got != c.high {
			t.Fatalf("the oracle is none: memory.high of a container with 64Mi/128Mi is %s, want %s", got, c.high)
		}
		if pods := r.Cgroups.Count("pod"); pods < 15 {
			t.Fatalf("%d pods, want at least 15", pods)
		}
		for name := range r.Cgroups {
			if strings.HasPrefix(name, "unknown") {
				t.Errorf("the oracle has a cgroup of no pod: %s", name)
			}
		}
	})
	if t.Failed() {
		t.FailNow()
	}
	if os.Getenv("MEMQOS_RECORD") != "" {
		if err := r.Write(); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

func plan(t *testing.T, r conformance.Record) conformance.Snapshot {
	t.Helper()
	plan, err := r.Plan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return plan
}

// testPlan: memqos plan, without a cluster, gives what the oracle's kernel holds.
func testPlan(t *testing.T, oracle conformance.Record) {
	c := oracle.Compare(plan(t, oracle))
	for cgroup, differences := range c.Differences {
		t.Errorf("%s: %s", cgroup, strings.Join(differences, "; "))
	}
	t.Logf("%d planned values equal the oracle's", c.Files)
}
