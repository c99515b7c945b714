package config

import (
	"maps"
	"slices"
	"strconv"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The group, version and kind of the configuration file.
const (
	APIVersion = "memqos.io/v1alpha1"
	Kind       = "MemoryQoSConfiguration"
)

// MemoryQoS is the feature gate that the kubelet has since 1.22. In memqos it is
// on by default: installing memqos is asking for it. Off, the agent watches
// nothing and writes nothing.
const MemoryQoS = "MemoryQoS"

// MemoryQoSConfiguration is the content of the agent's configuration file.
type MemoryQoSConfiguration struct {
	metav1.TypeMeta `json:",inline"`

	// FeatureGates turns features on and off by name. The only one is MemoryQoS.
	// Default: MemoryQoS=true.
	FeatureGates map[string]bool `json:"featureGates,omitempty"`

	// EmulationVersion is the Kubernetes release whose MemoryQoS is reproduced,
	// as "major.minor" in quotes. "1.22" to "1.26": memory.high is throttling
	// factor x limit. "1.27" to "1.35": request + factor x (limit - request).
	// "1.36" and "1.37": the same memory.high, and tiered protection. Default:
	// "1.27".
	EmulationVersion EmulationVersion `json:"emulationVersion,omitempty"`

	// MemoryThrottlingFactor is the factor in the formula of memory.high,
	// greater than 0 and at most 1. Default: that of the emulated release, 0.8
	// up to 1.26 and 0.9 from 1.27. The kubelet of 1.37 has none by default and
	// then sets no memory.high; here 0.9 stays.
	MemoryThrottlingFactor *float64 `json:"memoryThrottlingFactor,omitempty"`

	// MemoryReservationPolicy is the kubelet's setting of that name, which it has
	// since 1.36: "TieredReservation" or "None". It must not be set for an earlier
	// release. Default: "TieredReservation" from 1.36. The kubelet's own default
	// is "None"; installing memqos is asking for protection.
	MemoryReservationPolicy MemoryReservationPolicy `json:"memoryReservationPolicy,omitempty"`

	// CgroupRoot is the kubelet's cgroupRoot: the cgroup that holds kubepods, as
	// a path from the root of the hierarchy ("/", or "/kubelet" on kind). Default:
	// empty, the tree is searched.
	CgroupRoot string `json:"cgroupRoot,omitempty"`

	// CgroupDriver is the kubelet's cgroupDriver: "systemd" or "cgroupfs".
	// Default: empty, told from the names in the tree.
	CgroupDriver CgroupDriver `json:"cgroupDriver,omitempty"`

	// ResyncPeriod is the time between two full passes, in which every file of
	// every pod is compared with what is wanted. At least 1s. Default: 30s.
	ResyncPeriod metav1.Duration `json:"resyncPeriod,omitempty"`

	// MetricsBindAddress is where /metrics is served over HTTP, as host:port;
	// "0" turns it off. Default: ":9810".
	MetricsBindAddress string `json:"metricsBindAddress,omitempty"`

	// HealthzBindAddress is where /healthz and /readyz are served over HTTP, as
	// host:port; "0" turns them off. Default: ":9811".
	HealthzBindAddress string `json:"healthzBindAddress,omitempty"`

	// Logging is how the agent logs to standard error.
	Logging Logging `json:"logging,omitempty"`
}

// Logging is the logging part of the configuration, named as in KubeletConfiguration.
type Logging struct {
	// Format is "json" or "text". Default: "json".
	Format string `json:"format,omitempty"`
	// Verbosity is the greatest level that is logged, 0 to 10: 0 changes of state
	// and errors; 2 each write; 4 each decision. Default: 0.
	Verbosity int `json:"verbosity,omitempty"`
}

// CgroupDriver is the way in which the kubelet and the runtime make cgroups.
type CgroupDriver string

// The cgroup drivers of the kubelet.
const (
	Systemd  CgroupDriver = "systemd"  // slices and scopes, made by systemd
	Cgroupfs CgroupDriver = "cgroupfs" // directories, made directly
)

// MemoryReservationPolicy says which memory the kernel holds back for requests.
type MemoryReservationPolicy string

// The memory reservation policies of the kubelet.
const (
	// TieredReservation protects Guaranteed pods with memory.min, which is never
	// reclaimed, and the others with memory.low, which is reclaimed last.
	TieredReservation MemoryReservationPolicy = "TieredReservation"
	// NoReservation protects nothing.
	NoReservation MemoryReservationPolicy = "None"
)

// EmulationVersion is a Kubernetes release as "major.minor".
type EmulationVersion string

// DefaultEmulationVersion is the release of the KEP's second alpha, the formula
// that all later releases keep.
const DefaultEmulationVersion EmulationVersion = "1.27"

// The first and the last release, as minor versions of 1, that can be emulated.
const (
	oldestMinor = 22
	newestMinor = 37
)

// EmulationVersions lists the releases that can be emulated, oldest first.
func EmulationVersions() []EmulationVersion {
	var all []EmulationVersion
	for minor := oldestMinor; minor <= newestMinor; minor++ {
		all = append(all, EmulationVersion("1."+strconv.Itoa(minor)))
	}
	return all
}

// AtLeast reports whether v is the release 1.minor or a later one. It is false
// for a version that is not valid.
func (v EmulationVersion) AtLeast(minor int) bool {
	i := slices.Index(EmulationVersions(), v)
	return i >= 0 && oldestMinor+i >= minor
}

// ThrottlingFactor is the factor that is used when none is configured: that of
// the release's kubelet, and for 1.37, which has none, that of the release before.
func (v EmulationVersion) ThrottlingFactor() float64 {
	if v.AtLeast(27) {
		return 0.9
	}
	return 0.8
}

// HasReservationPolicy reports whether the release's kubelet knows
// memoryReservationPolicy.
func (v EmulationVersion) HasReservationPolicy() bool { return v.AtLeast(36) }

// Enabled reports whether a feature gate is on.
func (c *MemoryQoSConfiguration) Enabled(gate string) bool { return c.FeatureGates[gate] }

// DeepCopy returns a copy that shares nothing with c.
func (c *MemoryQoSConfiguration) DeepCopy() *MemoryQoSConfiguration {
	out := *c
	out.FeatureGates = maps.Clone(c.FeatureGates)
	if c.MemoryThrottlingFactor != nil {
		out.MemoryThrottlingFactor = new(*c.MemoryThrottlingFactor)
	}
	return &out
}
