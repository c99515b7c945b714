package metrics

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/memqos/memqos/memory"
)

func TestLint(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	m := New(reg, "v1", "abc", "go1")
	m.Skipped("Reason")
	m.Unsupported("Reason")
	m.Feature("MemoryQoS", true)
	m.FullPass(1, 2, Found{})
	m.Config("1.27", "Enforce", "", 0.9)
	m.Containers(func() []Container { return testContainers })
	problems, err := testutil.GatherAndLint(reg)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	if n, err := testutil.GatherAndCount(reg); err != nil || n < len(levels)*len(memory.Files)*len(results) {
		t.Errorf("%d series, %v", n, err)
	}
}

func TestUnsupportedHasOneReason(t *testing.T) {
	m := New(prometheus.NewRegistry(), "", "", "")
	m.Unsupported("A")
	m.Unsupported("B")
	if err := testutil.CollectAndCompare(m.unsupported, strings.NewReader(`
# HELP memqos_node_unsupported 1 while this node cannot be served and the agent idles, by reason; no series while it is served.
# TYPE memqos_node_unsupported gauge
memqos_node_unsupported{reason="B"} 1
`)); err != nil {
		t.Error(err)
	}
	m.Supported(42)
	if n := testutil.CollectAndCount(m.unsupported); n != 0 {
		t.Errorf("%d series while served", n)
	}
	if got := testutil.ToFloat64(m.allocatable); got != 42 {
		t.Errorf("allocatable %v", got)
	}
}

func TestWrite(t *testing.T) {
	m := New(prometheus.NewRegistry(), "", "", "")
	m.Write("pod", memory.Min, Written)
	m.Write("pod", memory.Min, Written)
	if got := testutil.ToFloat64(m.writes.WithLabelValues("pod", "memory.min", "written")); got != 2 {
		t.Errorf("got %v", got)
	}
}
