package config

import (
	"fmt"
	"net"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
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
	errs = append(errs, validateShare(c.MemoryThrottlingFactor, field.NewPath("memoryThrottlingFactor"), "0.9")...)
	if c.MemoryReservationPolicy != "" || c.EmulationVersion.HasReservationPolicy() {
		errs = append(errs, validateReservationPolicy(c.MemoryReservationPolicy, c.EmulationVersion, field.NewPath("memoryReservationPolicy"))...)
	}
	errs = append(errs, validateOneOf(c.Mode, field.NewPath("mode"), Enforce, DryRun)...)
	errs = append(errs, validateRules(c)...)
	errs = append(errs, validateStallGuard(&c.StallGuard, field.NewPath("stallGuard"))...)
	errs = append(errs, validateRails(&c.Rails, field.NewPath("rails"))...)
	errs = append(errs, validateOneOf(c.RestoreOnExit, field.NewPath("restoreOnExit"), RestoreAuto, RestoreNever, RestoreAlways)...)
	errs = append(errs, validateCgroupRoot(c.CgroupRoot, field.NewPath("cgroupRoot"))...)
	switch c.CgroupDriver {
	case "", Systemd, Cgroupfs:
	default:
		errs = append(errs, field.NotSupported(field.NewPath("cgroupDriver"), c.CgroupDriver, []CgroupDriver{Systemd, Cgroupfs}))
	}
	for i, p := range c.BundlePaths {
		errs = append(errs, validateBundlePath(p, field.NewPath("bundlePaths").Index(i))...)
	}
	if f := c.KubeletConfigFile; f != "" && !isCleanFile(f) {
		errs = append(errs, field.Invalid(field.NewPath("kubeletConfigFile"), f, "must be a clean absolute path, such as /var/lib/kubelet/config.yaml"))
	}
	if d := c.StateDir; !isCleanFile(d) {
		errs = append(errs, field.Invalid(field.NewPath("stateDir"), d, "must be a clean absolute path, such as /run/memqos"))
	}
	if d := c.ResyncPeriod.Duration; d < time.Second {
		errs = append(errs, field.Invalid(field.NewPath("resyncPeriod"), d.String(), "must be at least 1s"))
	}
	errs = append(errs, validateAddress(c.MetricsBindAddress, field.NewPath("metricsBindAddress"))...)
	if d := c.MetricsCertDir; d != "" && !isCleanFile(d) {
		errs = append(errs, field.Invalid(field.NewPath("metricsCertDir"), d, "must be a clean absolute path, such as /etc/memqos-tls"))
	} else if d != "" && !c.MetricsSecure {
		errs = append(errs, field.Invalid(field.NewPath("metricsCertDir"), d, "is used with metricsSecure alone: set that to true, or remove this"))
	}
	errs = append(errs, validateLoopback(c.PprofBindAddress, field.NewPath("pprofBindAddress"))...)
	errs = append(errs, validateAddress(c.HealthzBindAddress, field.NewPath("healthzBindAddress"))...)
	errs = append(errs, validateAddress(c.StatusBindAddress, field.NewPath("statusBindAddress"))...)
	logging := field.NewPath("logging")
	if f := c.Logging.Format; f != "json" && f != "text" {
		errs = append(errs, field.NotSupported(logging.Child("format"), f, []string{"json", "text"}))
	}
	if v := c.Logging.Verbosity; v < 0 || v > 10 {
		errs = append(errs, field.Invalid(logging.Child("verbosity"), v, "must be from 0 to 10"))
	}
	return errs
}

func validateReservationPolicy(p MemoryReservationPolicy, release EmulationVersion, at *field.Path) field.ErrorList {
	switch {
	case p != TieredReservation && p != NoReservation:
		return field.ErrorList{field.NotSupported(at, p, []MemoryReservationPolicy{NoReservation, TieredReservation})}
	case !release.HasReservationPolicy():
		return field.ErrorList{field.Invalid(at, p, fmt.Sprintf(`the kubelet %s has no such setting: remove it, or set emulationVersion to "1.36" or later`, release))}
	}
	return nil
}

// validateShare takes nil for not set.
func validateShare(f *float64, at *field.Path, example string) field.ErrorList {
	if f != nil && !(*f > 0 && *f <= 1) { // also refuses NaN
		return field.ErrorList{field.Invalid(at, *f, "must be greater than 0 and at most 1, such as "+example)}
	}
	return nil
}

func validateOneOf[T ~string](v T, at *field.Path, all ...T) field.ErrorList {
	if !slices.Contains(all, v) {
		return field.ErrorList{field.NotSupported(at, v, all)}
	}
	return nil
}

func validateStallGuard(g *StallGuard, at *field.Path) field.ErrorList {
	errs := validateShare(g.StallShare, at.Child("stallShare"), "0.3")
	if d := g.Window.Duration; d < 2*time.Second || d > 5*time.Minute {
		errs = append(errs, field.Invalid(at.Child("window"), d.String(), "must be from 2s to 5m"))
	}
	if d := g.Hold.Duration; d < g.Window.Duration {
		errs = append(errs, field.Invalid(at.Child("hold"), d.String(), "must not be shorter than window, "+g.Window.Duration.String()))
	}
	return errs
}

func validateRails(r *Rails, at *field.Path) field.ErrorList {
	var errs field.ErrorList
	if q := r.SystemReserve; q != nil && q.Sign() < 0 {
		errs = append(errs, field.Invalid(at.Child("systemReserve"), q.String(), "must not be negative; 0 is none"))
	}
	if f := r.ReclaimMargin; f != nil && !(*f >= 0 && *f < 1) {
		errs = append(errs, field.Invalid(at.Child("reclaimMargin"), *f, "must be at least 0 and less than 1, such as 0.05"))
	}
	return errs
}

func validateBundlePath(p string, at *field.Path) field.ErrorList {
	if !isCleanFile(p) || strings.Count(p, BundleID) != 1 {
		return field.ErrorList{field.Invalid(at, p, `must be a clean absolute path with "<id>" in it once, such as "/run/containerd/io.containerd.runtime.v2.task/k8s.io/<id>/config.json"`)}
	}
	return nil
}

// isCleanFile reports whether p is an absolute path other than "/" in its
// shortest form.
func isCleanFile(p string) bool {
	return path.IsAbs(p) && path.Clean(p) == p && p != "/" && !strings.ContainsAny(p, "\x00\n")
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

// validateLoopback is validateAddress for what nobody but the node itself may reach.
func validateLoopback(addr string, at *field.Path) field.ErrorList {
	if errs := validateAddress(addr, at); len(errs) > 0 || addr == "0" {
		return errs
	}
	host, _, _ := net.SplitHostPort(addr)
	if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		return field.ErrorList{field.Invalid(at, addr, "must be a loopback address, such as 127.0.0.1:9813: it is not for the network; kubectl port-forward gets there")}
	}
	return nil
}

// ValidateUpdate returns every field of a valid configuration in which it
// differs from the one that an agent runs with and which a running agent cannot
// change.
func ValidateUpdate(running, c *MemoryQoSConfiguration) field.ErrorList {
	var errs field.ErrorList
	for _, x := range []struct {
		field        string
		running, now any
	}{
		{"featureGates", running.FeatureGates, c.FeatureGates},                   // starting and stopping is the process's
		{"cgroupRoot", running.CgroupRoot, c.CgroupRoot},                         // what was written under the old one would stay
		{"cgroupDriver", running.CgroupDriver, c.CgroupDriver},                   // likewise
		{"bundlePaths", running.BundlePaths, c.BundlePaths},                      // read once, at the start
		{"stateDir", running.StateDir, c.StateDir},                               // the originals are in the old one
		{"restoreOnExit", running.RestoreOnExit, c.RestoreOnExit},                // likewise
		{"metricsBindAddress", running.MetricsBindAddress, c.MetricsBindAddress}, // a listener is bound once
		{"metricsSecure", running.MetricsSecure, c.MetricsSecure},                // likewise
		{"metricsCertDir", running.MetricsCertDir, c.MetricsCertDir},             // likewise
		{"pprofBindAddress", running.PprofBindAddress, c.PprofBindAddress},       // likewise
		{"healthzBindAddress", running.HealthzBindAddress, c.HealthzBindAddress}, // likewise
		{"statusBindAddress", running.StatusBindAddress, c.StatusBindAddress},    // likewise
		{"logging", running.Logging, c.Logging},                                  // a logger is made once
	} {
		if !equality.Semantic.DeepEqual(x.running, x.now) {
			errs = append(errs, field.Invalid(field.NewPath(x.field), x.now, fmt.Sprintf("the agent runs with %v and cannot change it: restart the agent, or put %v back", x.running, x.running)))
		}
	}
	return errs
}
