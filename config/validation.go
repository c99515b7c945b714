package config

import (
	"fmt"
	"net"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Validate returns every fault of a defaulted configuration. Each names the
// field, the value and what would be right.
func Validate(c *MemoryQoSConfiguration) field.ErrorList {
	var errs field.ErrorList
	for gate := range c.FeatureGates {
		if gate != MemoryQoS {
			errs = append(errs, field.NotSupported(field.NewPath("featureGates"), gate, []string{MemoryQoS}))
		}
	}
	if all := EmulationVersions(); !slices.Contains(all, c.EmulationVersion) {
		errs = append(errs, field.NotSupported(field.NewPath("emulationVersion"), c.EmulationVersion, all))
	}
	if f := c.MemoryThrottlingFactor; f != nil && !(*f > 0 && *f <= 1) { // also refuses NaN
		errs = append(errs, field.Invalid(field.NewPath("memoryThrottlingFactor"), *f, "must be greater than 0 and at most 1, such as 0.9"))
	}
	errs = append(errs, validateReservationPolicy(c, field.NewPath("memoryReservationPolicy"))...)
	errs = append(errs, validateCgroupRoot(c.CgroupRoot, field.NewPath("cgroupRoot"))...)
	switch c.CgroupDriver {
	case "", Systemd, Cgroupfs:
	default:
		errs = append(errs, field.NotSupported(field.NewPath("cgroupDriver"), c.CgroupDriver, []CgroupDriver{Systemd, Cgroupfs}))
	}
	if d := c.ResyncPeriod.Duration; d < time.Second {
		errs = append(errs, field.Invalid(field.NewPath("resyncPeriod"), d.String(), "must be at least 1s"))
	}
	errs = append(errs, validateAddress(c.MetricsBindAddress, field.NewPath("metricsBindAddress"))...)
	errs = append(errs, validateAddress(c.HealthzBindAddress, field.NewPath("healthzBindAddress"))...)
	logging := field.NewPath("logging")
	if f := c.Logging.Format; f != "json" && f != "text" {
		errs = append(errs, field.NotSupported(logging.Child("format"), f, []string{"json", "text"}))
	}
	if v := c.Logging.Verbosity; v < 0 || v > 10 {
		errs = append(errs, field.Invalid(logging.Child("verbosity"), v, "must be from 0 to 10"))
	}
	return errs
}

func validateReservationPolicy(c *MemoryQoSConfiguration, at *field.Path) field.ErrorList {
	switch p := c.MemoryReservationPolicy; {
	case p == "" && !c.EmulationVersion.HasReservationPolicy():
		return nil
	case p != TieredReservation && p != NoReservation:
		return field.ErrorList{field.NotSupported(at, p, []MemoryReservationPolicy{NoReservation, TieredReservation})}
	case !c.EmulationVersion.HasReservationPolicy():
		return field.ErrorList{field.Invalid(at, p, fmt.Sprintf(`the kubelet %s has no such setting: remove it, or set emulationVersion to "1.36" or later`, c.EmulationVersion))}
	}
	return nil
}

func validateCgroupRoot(root string, at *field.Path) field.ErrorList {
	switch {
	case root == "":
		return nil
	case !path.IsAbs(root), path.Clean(root) != root:
		return field.ErrorList{field.Invalid(at, root, `must be a clean absolute path below the root of the cgroup hierarchy, such as "/" or "/kubelet"`)}
	case strings.ContainsAny(root, "\x00\n"):
		return field.ErrorList{field.Invalid(at, root, "must not contain control characters")}
	case strings.HasSuffix(root, ".slice"):
		return field.ErrorList{field.Invalid(at, root, `must be the kubelet's cgroupRoot, such as "/kubelet", not the name of the slice that systemd makes of it`)}
	}
	return nil
}

func validateAddress(addr string, at *field.Path) field.ErrorList {
	if addr == "0" {
		return nil
	}
	_, port, err := net.SplitHostPort(addr)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return field.ErrorList{field.Invalid(at, addr, fmt.Sprintf(`must be host:port, ":port", or "0" for none: %v`, err))}
	}
	return nil
}
