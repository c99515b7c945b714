//go:build e2e

package e2e

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/memqos/memqos/hack/testnode"
	"github.com/memqos/memqos/test/conformance"
)

// The same pods under a kubelet with the gate on and under memqos beside a kubelet
// of the same release with the gate off: every file of every cgroup is equal. Then
// what happens on the node with memqos while pods come, restart and go.
func TestNode(t *testing.T) {
	seed, err := seed()
	if err != nil {
		t.Fatalf("MEMQOS_SEED: %v", err)
	}
	for _, c := range chosenColumns() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel() // one emulated processor to each of the machine's
			t.Logf("the same random pods again: MEMQOS_SEED=%d", seed)
			oracle := runOracle(t, c, seed)

			node := c.start(t, false, seed)
			untouched := takeSnapshot(t, node)
			want := onNode(t, oracle, untouched)
			before := differences(want, untouched)
			if len(before) == 0 {
				t.Fatal("there is nothing to do: without memqos the node already holds the oracle's values")
			}
			t.Logf("without memqos %d files differ from the oracle's", len(before))
			agent := installAgent(t, node, c.agent)
			eventually(t, "parity", func() error { return same(differences(want, takeSnapshot(t, node))) })
			t.Logf("parity: %d containers, %d sandboxes, %d pods, kubepods and its classes, 4 files each: equal",
				oracle.Cgroups.Count("container"), oracle.Cgroups.Count("sandbox"), oracle.Cgroups.Count("pod"))

			t.Run("plan", func(t *testing.T) { testPlan(t, oracle) })
			if len(c.resizes) > 0 {
				t.Run("resize", func(t *testing.T) { testResize(t, node, oracle) })
			}
			t.Run("debug", func(t *testing.T) { testDebug(t, node, c) })
			t.Run("inspect", func(t *testing.T) { testInspect(t, agent) })
			if c.life {
				t.Run("churn", func(t *testing.T) { testChurn(t, node) })
				t.Run("restart", func(t *testing.T) { testRestart(t, node, agent) })
				t.Run("emptied", func(t *testing.T) { testEmptied(t, node) })
				t.Run("unsupported", func(t *testing.T) { testLateKubepods(t, node, agent) })
			} else {
				t.Run("change", func(t *testing.T) { testChange(t, node, c) })
			}
			t.Run("rights", func(t *testing.T) { testRights(t, node) })
			t.Run("kernel", func(t *testing.T) { testKernel(t, node) })
		})
	}
}

// onNode is what the oracle's kubelet would have made of the pods on another node. Two
// machines of the same size may differ in their memory by a page or two, from boot to
// boot, and so in node allocatable and in what follows from it: there the value is the
// plan's for the other node, if the oracle's was the plan's for its own.
func onNode(t *testing.T, oracle conformance.Record, node conformance.Snapshot) conformance.Snapshot {
	t.Helper()
	mine, theirs := node["kubepods"]["memory.max"], oracle.Cgroups["kubepods"]["memory.max"]
	if mine == theirs {
		return oracle.Cgroups
	}
	m, errMine := strconv.ParseInt(mine, 10, 64)
	o, errTheirs := strconv.ParseInt(theirs, 10, 64)
	if errMine != nil || errTheirs != nil || max(m-o, o-m) > 64<<10 {
		t.Fatalf("node allocatable is %s, the oracle's was %s: these are no two nodes of one kind", mine, theirs)
	}
	t.Logf("the machine has %d bytes of node allocatable, the oracle's had %d", m, o)
	other := oracle
	other.Cgroups = node
	there, here := plan(t, oracle), plan(t, other)
	want := conformance.Snapshot{}
	for name, files := range oracle.Cgroups {
		want[name] = maps.Clone(files)
		planned := strings.TrimSuffix(name, conformance.CrunSuffix)
		for file, value := range files {
			if v, ok := here[planned][file]; ok && value == there[planned][file] {
				want[name][file] = v
			}
		}
	}
	want["kubepods"]["memory.max"] = mine
	return want
}

// baseManifests are what every column has.
var baseManifests = []string{"pods.yaml", "init-running.yaml", "static-burstable.yaml", "static-guaranteed.yaml"}

// runOracle returns what a kubelet with the gate on makes of the pods.
func runOracle(t *testing.T, c column, seed uint64) conformance.Record {
	r := conformance.Record{
		Kubelet: c.node.Kubernetes, Node: c.layout, APIServer: cmp.Or(c.node.APIServer, c.node.Kubernetes),
		Manifests: slices.Concat(baseManifests, c.manifests), Seed: seed, RandomPods: randomPods(), PlanFlags: c.plan,
	}
	t.Run("oracle", func(t *testing.T) {
		node := c.start(t, true, seed)
		r.Host = host(t, node, c)
		r.Cgroups = oracleSums(t, node, r)
		if got := r.Cgroups["container default/burstable/app"]["memory.high"]; got != c.high {
			t.Fatalf("the oracle is none: memory.high of a container with 64Mi/128Mi is %s, want %s; within: %v", got, c.high, r.Cgroups["container default/burstable/app"+conformance.CrunSuffix])
		}
		if pods := r.Cgroups.Count("pod"); whole() && pods < conformance.MinPods {
			t.Fatalf("%d pods, want at least %d", pods, conformance.MinPods)
		}
		for name := range r.Cgroups {
			if strings.HasPrefix(name, "unknown") || strings.HasSuffix(name, "/too-large") {
				t.Errorf("the oracle has a cgroup of no pod: %s", name)
			}
		}
		for i, manifest := range c.resizes {
			resize(t, node, manifest)
			r.Resizes = append(r.Resizes, conformance.Resize{Manifest: manifest})
			r.Resizes[i].Cgroups = ofResize(oracleSums(t, node, r.Resized(i)))
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

// oracleSums takes a snapshot once the sums are those of all pods: the kubelet
// writes them when it makes a pod's cgroup, and else once a minute.
func oracleSums(t *testing.T, node *testnode.Node, r conformance.Record) (s conformance.Snapshot) {
	t.Helper()
	s = takeSnapshot(t, node)
	r.Cgroups = s // the plan takes node allocatable from it
	wanted := plan(t, r)
	eventually(t, "the kubelet's sums", func() error {
		s = takeSnapshot(t, node)
		for _, name := range []string{"kubepods", "burstable"} {
			for _, file := range []string{"memory.min", "memory.low"} {
				if want, ok := wanted[name][file]; ok && s[name][file] != want {
					return fmt.Errorf("%s %s is %s, the sum of the requests is %s", name, file, s[name][file], want)
				}
			}
		}
		return nil
	})
	return s
}

// host says what a node runs on.
func host(t *testing.T, node *testnode.Node, c column) conformance.Host {
	t.Helper()
	word := func(i int, argv ...string) string {
		out, err := node.Run(t.Context(), argv...)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimPrefix(strings.Fields(out)[i], "v")
	}
	runtime := cmp.Or(c.node.Runtime, "runc")
	return conformance.Host{
		Kernel:       word(0, "uname", "-r"),
		Systemd:      word(1, "systemctl", "--version"),
		Runtime:      "containerd " + strings.Trim(word(2, "containerd", "--version"), "v"),
		OCIRuntime:   runtime + " " + word(2, runtime, "--version"),
		CgroupDriver: c.node.CgroupDriver,
		CgroupRoot:   cmp.Or(c.node.CgroupRoot, "/"),
	}
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
