package config

import (
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
)

// SetDefaults fills what is not set in c. It is idempotent.
func SetDefaults(c *MemoryQoSConfiguration) {
	c.APIVersion, c.Kind = APIVersion, Kind
	if c.FeatureGates == nil {
		c.FeatureGates = map[string]bool{}
	}
	if _, ok := c.FeatureGates[MemoryQoS]; !ok {
		c.FeatureGates[MemoryQoS] = true
	}
	if c.EmulationVersion == "" {
		c.EmulationVersion = DefaultEmulationVersion
	}
	if c.MemoryThrottlingFactor == nil {
		c.MemoryThrottlingFactor = new(c.EmulationVersion.ThrottlingFactor())
	}
	if c.MemoryReservationPolicy == "" && c.EmulationVersion.HasReservationPolicy() {
		c.MemoryReservationPolicy = TieredReservation
	}
	if c.Mode == "" {
		c.Mode = Enforce
	}
	if c.StallGuard.Enabled == nil {
		c.StallGuard.Enabled = new(true)
	}
	if c.StallGuard.StallShare == nil {
		c.StallGuard.StallShare = new(0.3)
	}
	if c.StallGuard.Window.Duration == 0 {
		c.StallGuard.Window.Duration = 10 * time.Second
	}
	if c.StallGuard.Hold.Duration == 0 {
		c.StallGuard.Hold.Duration = 5 * time.Minute
	}
	if c.Rails.SystemReserve == nil {
		c.Rails.SystemReserve = resource.NewQuantity(100<<20, resource.BinarySI)
	}
	if c.Rails.ReclaimMargin == nil {
		c.Rails.ReclaimMargin = new(0.01)
	}
	if c.RestoreOnExit == "" {
		c.RestoreOnExit = RestoreAuto
	}
	if c.BundlePaths == nil {
		c.BundlePaths = DefaultBundlePaths()
	}
	if c.StateDir == "" {
		c.StateDir = "/run/memqos"
	}
	if c.ResyncPeriod.Duration == 0 {
		c.ResyncPeriod.Duration = time.Minute
	}
	if c.MetricsBindAddress == "" {
		c.MetricsBindAddress = ":9810"
	}
	if c.PprofBindAddress == "" {
		c.PprofBindAddress = "0"
	}
	if c.HealthzBindAddress == "" {
		c.HealthzBindAddress = ":9811"
	}
	if c.StatusBindAddress == "" {
		c.StatusBindAddress = "127.0.0.1:9812"
	}
	if c.Logging.Format == "" {
		c.Logging.Format = "json"
	}
}

// DefaultBundlePaths returns where the runtimes keep the config.json of a
// container's OCI bundle, which is there before the container's cgroup is:
// containerd, the containerd of k3s, and CRI-O.
func DefaultBundlePaths() []string {
	return []string{
		"/run/containerd/io.containerd.runtime.v2.task/k8s.io/<id>/config.json",
		"/run/k3s/containerd/io.containerd.runtime.v2.task/k8s.io/<id>/config.json",
		"/run/containers/storage/overlay-containers/<id>/userdata/config.json",
	}
}
