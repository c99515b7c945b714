//go:build e2e

package e2e

import (
	"bytes"
	"maps"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/memqos/memqos/hack/testnode"
	"github.com/memqos/memqos/test/conformance"
)

// column is one kind of node, and the pods that run on it.
type column struct {
	name string
	// layout is what is particular of the node, beside the kubelet's version.
	layout string
	// node is what both nodes are: the oracle and the one that memqos runs on.
	node testnode.Options
	// oracle is the KubeletConfiguration that the gate takes on that release.
	oracle map[string]any
	// gates are feature gates of both kubelets, beside MemoryQoS.
	gates map[string]bool
	// agent is added to the configuration of memqos, and plan to its flags.
	agent string
	plan  []string
	// high is the memory.high of a container with 64Mi/128Mi on that release: the
	// oracle that does not have it is none.
	high string
	// debugFactor x node allocatable is the memory.high of a container without
	// request and limit, such as kubectl debug adds; 0 is none.
	debugFactor float64
	// manifests are files of testdata, beside those that every column has.
	manifests []string
	// resizes are manifests to which the pods of conformance.FirstResize are
	// resized in place, one after the other.
	resizes []string
	// life: what happens on the node while pods come and go is tested too.
	life bool
}

const high127 = "127504384" // 64Mi + 0.9 x 64Mi

var factor = map[string]any{"memoryThrottlingFactor": 0.9}

// columns are the nodes of make e2e.
var columns = []column{
	{name: "systemd", layout: "systemd", node: testnode.Options{Kubernetes: "1.27.4", CgroupDriver: "systemd"}, oracle: factor, high: high127, life: true},
	{name: "cgroupfs", layout: "cgroupfs", node: testnode.Options{Kubernetes: "1.27.4", CgroupDriver: "cgroupfs"}, oracle: factor, high: high127, life: true},
}

// matrix are the nodes that make e2e-matrix adds.
var matrix = []column{
	// Of trixie: bookworm's crun 1.8 leaves the scope without what the kubelet asks for.
	{name: "crun", layout: "crun", node: testnode.Options{Kubernetes: "1.27.4", Debian: "trixie", CgroupDriver: "systemd", Runtime: "crun"}, oracle: factor, high: high127},
	{name: "kind", layout: "kind", node: testnode.Options{Kubernetes: "1.27.4", CgroupDriver: "systemd", CgroupRoot: "/kubelet"}, oracle: factor, high: high127},
	{name: "crio", layout: "crio", node: testnode.Options{Kubernetes: "1.27.4", CRI: "cri-o", CgroupDriver: "systemd"}, oracle: factor, high: high127},
	{name: "trixie", layout: "trixie", node: testnode.Options{Kubernetes: "1.27.4", Debian: "trixie", CgroupDriver: "systemd"}, oracle: factor, high: high127},
	{name: "sid", layout: "sid", node: testnode.Options{Kubernetes: "1.27.4", Debian: "sid", CgroupDriver: "systemd"}, oracle: factor, high: high127},
	{name: "kernel-5.10", layout: "kernel-5.10", node: testnode.Options{Kubernetes: "1.27.4", Kernel: "bullseye", CgroupDriver: "systemd"}, oracle: factor, high: high127},
	{
		name: "kubelet-1.22", layout: "systemd",
		node:        testnode.Options{Kubernetes: "1.22.17", APIServer: "1.24.17", CgroupDriver: "systemd"},
		oracle:      map[string]any{"memoryThrottlingFactor": 0.8},
		gates:       map[string]bool{"EphemeralContainers": true}, // on by default since 1.23
		agent:       `emulationVersion: "1.22"`,
		plan:        []string{"--emulation-version", "1.22"},
		high:        "107372544", // 0.8 x 128Mi
		debugFactor: 0.8,
	},
	{
		name: "kubelet-1.37", layout: "systemd",
		node:        testnode.Options{Kubernetes: "1.37.1", CgroupDriver: "systemd"},
		oracle:      map[string]any{"memoryThrottlingFactor": 0.9, "memoryReservationPolicy": "TieredReservation"},
		agent:       `emulationVersion: "1.37"`,
		plan:        []string{"--emulation-version", "1.37"},
		high:        high127,
		debugFactor: 0.9,
		manifests:   []string{"pods-1.37.yaml", conformance.FirstResize},
		resizes:     []string{"resize-1.yaml", "resize-2.yaml", "resize-3.yaml"},
	},
}

// chosenColumns are the columns to run: all of them with MEMQOS_E2E_MATRIX set.
func chosenColumns() []column {
	if os.Getenv("MEMQOS_E2E_MATRIX") == "" {
		return columns
	}
	return append(append([]column{}, columns...), matrix...)
}

// whole says that a run is to be recorded, or is the matrix's: it has all random pods.
func whole() bool { return os.Getenv("MEMQOS_E2E_MATRIX") != "" || os.Getenv("MEMQOS_RECORD") != "" }

func randomPods() int {
	if whole() {
		return conformance.RandomPods
	}
	return conformance.RandomPods * 2 / 5 // each costs an emulated node seconds, four times
}

// start boots a node of the column with its pods on it, and those of a seed.
func (c column) start(t *testing.T, gate bool, seed uint64) *testnode.Node {
	t.Helper()
	o := c.node
	o.Audit = true
	o.FeatureGates = map[string]bool{"MemoryQoS": gate}
	maps.Copy(o.FeatureGates, c.gates)
	o.KubeletConfig = map[string]any{}
	if gate {
		maps.Copy(o.KubeletConfig, c.oracle)
	}
	random, err := conformance.Random(seed, o.Kubernetes, randomPods())
	if err != nil {
		t.Fatal(err)
	}
	o.StaticPods = map[string][]byte{
		"static-burstable.yaml":  read(t, "static-burstable.yaml"),
		"static-guaranteed.yaml": read(t, "static-guaranteed.yaml"),
	}
	node := bareNode(t, o)
	start := time.Now()
	manifests := [][]byte{read(t, "pods.yaml"), random}
	for _, name := range c.manifests {
		manifests = append(manifests, read(t, name))
	}
	apply(t, node, bytes.Join(manifests, []byte("\n---\n")))
	awaitOthers(t, node)
	t.Logf("pods running after %.0fs", time.Since(start).Seconds())
	return node
}

// seed is that of the random pods of a run, both nodes'.
var seed = sync.OnceValues(func() (uint64, error) {
	if s := os.Getenv("MEMQOS_SEED"); s != "" {
		return strconv.ParseUint(s, 10, 64)
	}
	return uint64(rand.Uint32()), nil
})
