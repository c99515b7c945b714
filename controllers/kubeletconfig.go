package controllers

import (
	"fmt"
	"os"

	"sigs.k8s.io/yaml"
)

// kubeletConfig is what a KubeletConfiguration says of the kubelet's own MemoryQoS.
type kubeletConfig struct {
	FeatureGates            map[string]bool `json:"featureGates"`
	MemoryThrottlingFactor  *float64        `json:"memoryThrottlingFactor"`
	MemoryReservationPolicy string          `json:"memoryReservationPolicy"`
}

func readKubeletConfig(path string) (c kubeletConfig, err error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return c, fmt.Errorf("read the kubelet's configuration: %w", err)
	}
	if err := yaml.Unmarshal(data, &c); err != nil {
		return c, fmt.Errorf("the kubelet's configuration %s: %w", path, err)
	}
	return c, nil
}

// does reports whether the file, whatever the kubelet's release, has it do a duty.
// Where it does not say so, a flag or a default still may: then the cgroups tell.
func (c kubeletConfig) does(d duty) bool {
	on, said := c.FeatureGates["MemoryQoS"]
	if !said {
		on = c.MemoryReservationPolicy != "" // valid only with the gate on, 1.37's default
	}
	if d == throttling {
		return on && c.MemoryThrottlingFactor != nil
	}
	return on && c.MemoryReservationPolicy == "TieredReservation"
}
