package controllers

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/memqos/memqos/memory"
)

func TestKubeletConfig(t *testing.T) {
	for _, tt := range []struct {
		name, config          string
		protection, throttles bool
	}{
		{"nothing", "", false, false},
		{"the gate alone: the cgroups tell", "featureGates: {MemoryQoS: true}", false, false},
		{"1.27", "featureGates: {MemoryQoS: true}\nmemoryThrottlingFactor: 0.9", false, true},
		{"1.37 configured", "memoryReservationPolicy: TieredReservation\nmemoryThrottlingFactor: 0.8", true, true},
		{"1.37 without protection", "memoryReservationPolicy: None\nmemoryThrottlingFactor: 0.8", false, true},
		{"turned off", "featureGates: {MemoryQoS: false}\nmemoryReservationPolicy: TieredReservation\nmemoryThrottlingFactor: 0.8", false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "config.yaml")
			if err := os.WriteFile(path, []byte("kind: KubeletConfiguration\n"+tt.config+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			c, err := readKubeletConfig(path)
			if err != nil {
				t.Fatal(err)
			}
			if got := c.does(protection); got != tt.protection {
				t.Errorf("protection %t, want %t", got, tt.protection)
			}
			if got := c.does(throttling); got != tt.throttles {
				t.Errorf("throttling %t, want %t", got, tt.throttles)
			}
		})
	}
}

// What the file says holds before any cgroup shows it, and no longer than it says.
func TestKubeletConfigStandsDown(t *testing.T) {
	b := newBystander(t)
	b.add(0, untouched, ofContainer)
	k := b.pod.writer.kubelet
	path := filepath.Join(t.TempDir(), "config.yaml")
	write := func(content string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		k.readConfig(path)
	}
	write("memoryReservationPolicy: TieredReservation")
	b.leaves(memory.Min, true)
	b.leaves(memory.High, false)
	b.fullPass()
	b.wants(b.container(0), "0 127504384 134217728")
	write("memoryReservationPolicy: [")
	b.leaves(memory.Min, true) // what was last read stays
	write("memoryReservationPolicy: None")
	b.leaves(memory.Min, false)
	b.fullPass()
	b.wants(b.container(0), atNine)
	got := strings.Join(b.announced(), "\n")
	if strings.Count(got, "MemoryQoSStandDown") != 1 || strings.Count(got, "MemoryQoSResumed") != 1 {
		t.Errorf("announced %s, want one stand-down and one resumption", got)
	}
}
