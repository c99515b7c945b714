//go:build e2e

package e2e

import (
	"maps"
	"os"
	"testing"

	"github.com/memqos/memqos/hack/testnode"
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
	{name: "crun", layout: "crun", node: testnode.Options{Kubernetes: "1.27.4", CgroupDriver: "systemd", Runtime: "crun"}, oracle: factor, high: high127},
	{name: "kind", layout: "kind", node: testnode.Options{Kubernetes: "1.27.4", CgroupDriver: "systemd", CgroupRoot: "/kubelet"}, oracle: factor, high: high127},
	{name: "crio", layout: "crio", node: testnode.Options{Kubernetes: "1.27.4", CRI: "cri-o", CgroupDriver: "systemd"}, oracle: factor, high: high127},
	{name: "trixie", layout: "trixie", node: testnode.Options{Kubernetes: "1.27.4", Debian: "trixie", CgroupDriver: "systemd"}, oracle: factor, high: high127},
	{name: "sid", layout: "sid", node: testnode.Options{Kubernetes: "1.27.4", Debian: "sid", CgroupDriver: "systemd"}, oracle: factor, high: high127},
	{name: "kernel-5.10", layout: "kernel-5.10", node: testnode.Options{Kubernetes: "1.27.4", Kernel: "bullseye", CgroupDriver: "systemd"}, oracle: factor, high: high127},
	{
		name: "kubelet-1.22", layout: "systemd",
		node:        testnode.Options{Kubernetes: "1.22.17", APIServer: "1.27.4", CgroupDriver: "systemd"},
		oracle:      map[string]any{"memoryThrottlingFactor": 0.8},
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
		manifests:   []string{"pods-1.37.yaml"},
	},
}

// chosenColumns are the columns to run: all of them with MEMQOS_E2E_MATRIX set.
func chosenColumns() []column {
	if os.Getenv("MEMQOS_E2E_MATRIX") == "" {
		return columns
	}
	return append(append([]column{}, columns...), matrix...)
}

// start boots a node of the column with its pods on it.
func (c column) start(t *testing.T, gate bool) *testnode.Node {
	t.Helper()
	o := c.node
	o.FeatureGates = map[string]bool{"MemoryQoS": gate}
	o.KubeletConfig = map[string]any{}
	if gate {
		maps.Copy(o.KubeletConfig, c.oracle)
	}
	return startNode(t, o, c.manifests...)
}
