package cgroup

import (
	"fmt"

	"github.com/containerd/cgroups/v3/cgroup2"
	"github.com/containerd/cgroups/v3/cgroup2/stats"
)

// Stat reads what the kernel counts of a cgroup's memory: usage, events and
// pressure (nil where the kernel has PSI off).
func (t *Tree) Stat(cgroup string) (*stats.Metrics, error) {
	// The library returns zeroes, and no error, for a cgroup that is not there.
	if _, err := t.Value(cgroup, "memory.current"); err != nil {
		return nil, err
	}
	m, err := cgroup2.Load("/"+cgroup, cgroup2.WithMountpoint(t.Mount))
	if err != nil {
		return nil, fmt.Errorf("load cgroup %s: %w", t.dir(cgroup), err)
	}
	s, err := m.StatFiltered(cgroup2.StatMemory | cgroup2.StatMemoryEvents)
	if err != nil {
		return nil, fmt.Errorf("stat cgroup %s: %w", t.dir(cgroup), err)
	}
	return s, nil
}
