package metrics

import (
	"math"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/memqos/memqos/memory"
)

// Container is what is told of a container where that is asked for.
type Container struct {
	Namespace, Pod, Name string
	// Wanted and Actual are what its files should hold and hold. What memqos does not
	// manage is not wanted.
	Wanted, Actual memory.Values
	Usage          uint64            // memory.current, in bytes
	Events         map[string]uint64 // memory.events
	Pressure       *Pressure         // memory.pressure; nil where the kernel has PSI off
}

// Pressure is the time, in seconds, in which some or all tasks waited for memory.
type Pressure struct{ Some, Full float64 }

var containerLabels = []string{"namespace", "pod", "container"}

func containerDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("memqos_container_memory_"+name, help, append(containerLabels[:3:3], labels...), nil)
}

var (
	containerWanted   = containerDesc("wanted_bytes", "What a file of the container's cgroup should hold; +Inf is max. With containerMetrics alone.", "file")
	containerActual   = containerDesc("actual_bytes", "What the file holds; +Inf is max. With containerMetrics alone.", "file")
	containerUsage    = containerDesc("usage_bytes", "memory.current of the container's cgroup. With containerMetrics alone.")
	containerEvents   = containerDesc("events_total", "Counters of memory.events of the container's cgroup. With containerMetrics alone.", "event")
	containerPressure = containerDesc("pressure_seconds_total", "Time in which some or all (full) tasks of the container waited for memory, of memory.pressure. With containerMetrics alone.", "stall")
)

// Containers has a scrape tell of the containers that read then returns. A container
// of which there is more than one cgroup, as while its next run begins, is told of once.
func (m *Metrics) Containers(read func() []Container) { m.registerer.MustRegister(containers(read)) }

type containers func() []Container

// Describe implements prometheus.Collector.
func (containers) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{containerWanted, containerActual, containerUsage, containerEvents, containerPressure} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (read containers) Collect(ch chan<- prometheus.Metric) {
	type key struct{ namespace, pod, name string }
	told := map[key]bool{}
	for _, c := range read() {
		k := key{c.Namespace, c.Pod, c.Name}
		if told[k] {
			continue
		}
		told[k] = true
		send := func(d *prometheus.Desc, t prometheus.ValueType, v float64, labels ...string) {
			ch <- prometheus.MustNewConstMetric(d, t, v, append([]string{c.Namespace, c.Pod, c.Name}, labels...)...)
		}
		for _, file := range memory.Files {
			if v, ok := c.Wanted[file]; ok {
				send(containerWanted, prometheus.GaugeValue, amount(v), string(file))
			}
			if v, ok := c.Actual[file]; ok {
				send(containerActual, prometheus.GaugeValue, amount(v), string(file))
			}
		}
		send(containerUsage, prometheus.GaugeValue, float64(c.Usage))
		for event, n := range c.Events {
			send(containerEvents, prometheus.CounterValue, float64(n), event)
		}
		if p := c.Pressure; p != nil {
			send(containerPressure, prometheus.CounterValue, p.Some, "some")
			send(containerPressure, prometheus.CounterValue, p.Full, "full")
		}
	}
}

func amount(v memory.Value) float64 {
	if v == memory.Unlimited {
		return math.Inf(1)
	}
	return float64(v)
}
