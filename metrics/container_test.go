package metrics

import (
	"fmt"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/memqos/memqos/memory"
)

// testContainers are two of a pod; of the first there are two cgroups.
var testContainers = []Container{
	testContainer("web-1", "app"),
	testContainer("web-1", "app"),
	testContainer("web-1", "log"),
}

// testContainer has all that a release gives and a kernel counts.
func testContainer(pod, name string) Container {
	values := memory.Values{memory.Min: 64 << 20, memory.Low: 0, memory.High: memory.Unlimited, memory.Max: 128 << 20}
	return Container{
		Namespace: "shop", Pod: pod, Name: name, Wanted: values, Actual: values, Usage: 96 << 20,
		Events:   map[string]uint64{"low": 0, "high": 7, "max": 0, "oom": 0, "oom_kill": 0, "oom_group_kill": 0},
		Pressure: &Pressure{Some: 1.5, Full: 0.25},
	}
}

func TestContainers(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	m := New(reg, "", "", "")
	bare := testContainer("web-2", "app")
	delete(bare.Wanted, memory.Low)
	bare.Pressure = nil // PSI is off
	now := []Container{testContainer("web-1", "app"), bare}
	m.Containers(func() []Container { return now })
	want := `
# HELP memqos_container_memory_wanted_bytes What a file of the container's cgroup should hold; +Inf is max. With containerMetrics alone.
# TYPE memqos_container_memory_wanted_bytes gauge
memqos_container_memory_wanted_bytes{container="app",file="memory.high",namespace="shop",pod="web-1"} +Inf
memqos_container_memory_wanted_bytes{container="app",file="memory.low",namespace="shop",pod="web-1"} 0
memqos_container_memory_wanted_bytes{container="app",file="memory.max",namespace="shop",pod="web-1"} 1.34217728e+08
memqos_container_memory_wanted_bytes{container="app",file="memory.min",namespace="shop",pod="web-1"} 6.7108864e+07
memqos_container_memory_wanted_bytes{container="app",file="memory.high",namespace="shop",pod="web-2"} +Inf
memqos_container_memory_wanted_bytes{container="app",file="memory.max",namespace="shop",pod="web-2"} 1.34217728e+08
memqos_container_memory_wanted_bytes{container="app",file="memory.min",namespace="shop",pod="web-2"} 6.7108864e+07
# HELP memqos_container_memory_pressure_seconds_total Time in which some or all (full) tasks of the container waited for memory, of memory.pressure. With containerMetrics alone.
# TYPE memqos_container_memory_pressure_seconds_total counter
memqos_container_memory_pressure_seconds_total{container="app",namespace="shop",pod="web-1",stall="full"} 0.25
memqos_container_memory_pressure_seconds_total{container="app",namespace="shop",pod="web-1",stall="some"} 1.5
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "memqos_container_memory_wanted_bytes", "memqos_container_memory_pressure_seconds_total"); err != nil {
		t.Error(err)
	}
	now = nil // those that are gone leave nothing behind
	if n, err := testutil.GatherAndCount(reg, "memqos_container_memory_wanted_bytes", "memqos_container_memory_usage_bytes"); err != nil || n != 0 {
		t.Errorf("%d series of no container (%v)", n, err)
	}
}

// ofContainers is how many series 110 pods of two containers make, the kubelet's own
// bound of pods on a node.
func ofContainers(t *testing.T) int {
	t.Helper()
	reg := prometheus.NewRegistry()
	var all []Container
	for i := range 110 {
		for j := range 2 {
			all = append(all, testContainer(fmt.Sprintf("web-%d", i), fmt.Sprintf("c-%d", j)))
		}
	}
	reg.MustRegister(containers(func() []Container { return all }))
	n, err := testutil.GatherAndCount(reg)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// What docs/configuration.md, docs/metrics.md and the chart say of the price.
func TestCardinality(t *testing.T) {
	if got, want := ofContainers(t), 110*2*17; got != want {
		t.Errorf("110 pods of two containers make %d series, want %d", got, want)
	}
}
