package config

import "time"

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
	if c.ResyncPeriod.Duration == 0 {
		c.ResyncPeriod.Duration = 30 * time.Second
	}
	if c.MetricsBindAddress == "" {
		c.MetricsBindAddress = ":9810"
	}
	if c.HealthzBindAddress == "" {
		c.HealthzBindAddress = ":9811"
	}
	if c.Logging.Format == "" {
		c.Logging.Format = "json"
	}
}
