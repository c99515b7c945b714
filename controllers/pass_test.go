package controllers

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/memqos/memqos/cgroup"
	"github.com/memqos/memqos/memory"
	"github.com/memqos/memqos/qos"
)

// What is protected is summed up at each level, what crun makes within a container
// once, and what is not bounded not at all.
func TestFindsProtection(t *testing.T) {
	at := func(level qos.Level, path string, values memory.Values) seen {
		return seen{Cgroup: &qos.Cgroup{Level: level, Cgroup: path, Values: values}}
	}
	cgroups := []seen{
		at(qos.LevelPod, "kubepods/p", memory.Values{memory.Min: 30, memory.Max: 100}),
		at(qos.LevelContainer, "kubepods/p/a", memory.Values{memory.Min: 10, memory.Low: 1, memory.High: 50}),
		at(qos.LevelContainer, "kubepods/p/a/"+cgroup.CrunChild, memory.Values{memory.Min: 10, memory.Low: 1}),
		at(qos.LevelContainer, "kubepods/p/b", memory.Values{memory.Min: 20}),
		at(qos.LevelContainer, "kubepods/p/c", memory.Values{memory.Min: memory.Unlimited}),
	}
	found := find(cgroups, outcome{})
	var all findings
	all.add(found)
	all.add(found)
	want := map[string]map[memory.File]float64{"pod": {memory.Min: 60}, "container": {memory.Min: 60, memory.Low: 2}}
	if diff := cmp.Diff(want, all.protected); diff != "" {
		t.Errorf("two pods (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[string]int{"pod": 2, "container": 8}, all.compared); diff != "" {
		t.Errorf("compared (-want +got):\n%s", diff)
	}
}
