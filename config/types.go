package config

import (
	"maps"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
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

	// Mode is "Enforce", or "DryRun": nothing is written, and what would be is
	// reported. Default: "Enforce".
	Mode Mode `json:"mode,omitempty"`

	// Rules say which pods are treated otherwise than the rest, or not at all.
	// The first rule that matches a pod applies to it, and no other; an annotation
	// on the pod goes before it. Default: none, as in the kubelet.
	Rules []Rule `json:"rules,omitempty"`

	// StallGuard is the way out for containers that memory.high has brought to a
	// standstill.
	StallGuard StallGuard `json:"stallGuard,omitempty"`

	// Rails are the bounds within which requests are protected.
	Rails Rails `json:"rails,omitempty"`

	// RestoreOnExit says whether the agent, when it ends, puts back what was there
	// before it first wrote: "Auto", only if its DaemonSet is being deleted;
	// "Keep", never; "Restore", always, at every update of the agent too.
	// Default: "Auto".
	RestoreOnExit RestoreOnExit `json:"restoreOnExit,omitempty"`

	// CgroupRoot is the kubelet's cgroupRoot: the cgroup that holds kubepods, as
	// a path from the root of the hierarchy ("/", or "/kubelet" on kind). Default:
	// empty, the tree is searched.
	CgroupRoot string `json:"cgroupRoot,omitempty"`

	// CgroupDriver is the kubelet's cgroupDriver: "systemd" or "cgroupfs".
	// Default: empty, told from the names in the tree.
	CgroupDriver CgroupDriver `json:"cgroupDriver,omitempty"`

	// BundlePaths are where the runtime keeps the config.json of a container's OCI
	// bundle, each an absolute path with "<id>" once in place of the container's
	// id. From there it is known which container a new cgroup belongs to before
	// the API server says so. Those that do not exist are passed over; an empty
	// list turns it off. Default: the places of containerd, of k3s and of CRI-O.
	BundlePaths []string `json:"bundlePaths,omitzero"`

	// KubeletConfigFile is the kubelet's configuration file as the agent sees it,
	// an absolute path. It tells whether the kubelet's own MemoryQoS is on.
	// Default: empty, not looked at.
	KubeletConfigFile string `json:"kubeletConfigFile,omitempty"`

	// StateDir is the directory, an absolute path, in which the agent keeps what
	// was there before it first wrote. Its content is about cgroups and is best
	// lost with them, at a restart of the node. Default: "/run/memqos".
	StateDir string `json:"stateDir,omitempty"`

	// ResyncPeriod is the time between two full passes, in which every file of
	// every pod is compared with what is wanted. At least 1s. Default: 1m.
	ResyncPeriod metav1.Duration `json:"resyncPeriod,omitempty"`

	// MetricsBindAddress is where /metrics is served, as host:port;
	// "0" turns it off. Default: ":9810".
	MetricsBindAddress string `json:"metricsBindAddress,omitempty"`

	// MetricsSecure is whether /metrics is served over HTTPS, and only to those whose
	// token the API server knows and whom it lets get /metrics. The agent then needs
	// the right to create tokenreviews and subjectaccessreviews. Default: false.
	MetricsSecure bool `json:"metricsSecure,omitempty"`

	// MetricsCertDir is the directory, an absolute path, with tls.crt and tls.key for
	// that; they are read again when they change. Without them the certificate is one
	// that the agent signs itself, which nobody can verify. Default: empty.
	MetricsCertDir string `json:"metricsCertDir,omitempty"`

	// ContainerMetrics is whether /metrics tells of each container too: what each of
	// its files should hold and holds, its usage, memory.events and pressure. They
	// are 17 series for each container. Default: false.
	ContainerMetrics bool `json:"containerMetrics,omitempty"`

	// PprofBindAddress is where the profiles of the Go runtime are served over HTTP
	// beneath /debug/pprof/, as host:port with a loopback address; "0" turns them
	// off. Default: "0".
	PprofBindAddress string `json:"pprofBindAddress,omitempty"`

	// HealthzBindAddress is where /healthz and /readyz are served over HTTP, as
	// host:port; "0" turns them off. Default: ":9811".
	HealthzBindAddress string `json:"healthzBindAddress,omitempty"`

	// StatusBindAddress is where the status page and its JSON, /status, are served
	// over HTTP, as host:port; "0" turns them off. They name every pod of the node
	// to whoever can connect. The default is out of the network's reach: kubectl
	// port-forward gets there; kubectl memqos needs ":9812". Default:
	// "127.0.0.1:9812".
	StatusBindAddress string `json:"statusBindAddress,omitempty"`

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

// Rule treats some pods otherwise than the rest. A rule with a match alone
// exempts its pods from the rules that follow it.
type Rule struct {
	// Name is what logs, metrics and reasons call the rule: a DNS label, and no
	// other rule's. Required.
	Name string `json:"name"`

	// Match says to which pods the rule applies. Required; {} is every pod.
	Match *Match `json:"match"`

	// Exclude leaves the pods alone: no file of theirs is written, and the sums of
	// kubepods and of the Burstable class go without them. It stands alone: with
	// it no other setting may be given. Default: false.
	Exclude bool `json:"exclude,omitempty"`

	// MemoryThrottlingFactor is the factor for these pods, greater than 0 and at
	// most 1. Default: that of the configuration.
	MemoryThrottlingFactor *float64 `json:"memoryThrottlingFactor,omitempty"`

	// MemoryReservationPolicy is the policy for these pods, "TieredReservation" or
	// "None". It must not be set for a release before 1.36. Default: that of the
	// configuration.
	MemoryReservationPolicy MemoryReservationPolicy `json:"memoryReservationPolicy,omitempty"`

	// MemoryHigh is "Disabled" for pods whose memory.high is to be max: they are
	// not throttled, and killed at their limit as without MemoryQoS. Default:
	// "Enabled".
	MemoryHigh Switch `json:"memoryHigh,omitempty"`

	// StallGuard is "Enabled" or "Disabled" for these pods. Default: as
	// stallGuard.enabled says.
	StallGuard Switch `json:"stallGuard,omitempty"`
}

// Match says to which pods a rule applies: those to which every field that is
// given applies. There is no selection by the labels of namespaces: the agent
// has no right to read those.
type Match struct {
	// Namespaces are names of namespaces, or prefixes followed by "*", such as
	// "team-*"; one of them must be the pod's. Default: any.
	Namespaces []string `json:"namespaces,omitempty"`

	// PodSelector is a label selector, with matchLabels and matchExpressions, as
	// Deployments have it. Default: any.
	PodSelector *metav1.LabelSelector `json:"podSelector,omitempty"`

	// QOSClasses are "Guaranteed", "Burstable" or "BestEffort"; one of them must be
	// the pod's. Default: any.
	QOSClasses []corev1.PodQOSClass `json:"qosClasses,omitempty"`

	// PriorityClassNames are names of priority classes; one of them must be the
	// pod's. Default: any, and none.
	PriorityClassNames []string `json:"priorityClassNames,omitempty"`
}

// StallGuard is about containers that sit at memory.high and get nowhere: the
// kernel holds them back without end where it finds nothing to reclaim, and does
// not kill them (kubernetes#118699). The guard raises memory.high, up to max, and
// lets it come back when usage has fallen. memory.max stays.
type StallGuard struct {
	// Enabled is whether containers are guarded, unless a rule or an annotation
	// says otherwise for their pod. Default: true.
	Enabled *bool `json:"enabled,omitempty"`

	// StallShare is the share of the window, greater than 0 and at most 1, that a
	// container has lost to the throttle when it is let go. Default: 0.3.
	StallShare *float64 `json:"stallShare,omitempty"`

	// Window is the time over which that share is taken, 2s to 5m. Default: 10s.
	Window metav1.Duration `json:"window,omitempty"`

	// Hold is the time for which memory.high stays raised at least, the window or
	// longer. It doubles with stalls that follow one another. Default: 5m.
	Hold metav1.Duration `json:"hold,omitempty"`
}

// Rails bound what is protected. A protection that leaves the kernel nothing to
// reclaim ends in an OOM kill beside free page cache.
type Rails struct {
	// SystemReserve is memory of the node that the sums at kubepods leave
	// unprotected, for the system's own services. The sums are those of the pods
	// as long as they leave it. Default: 100Mi, the kubelet's default hard
	// eviction threshold, within which no pod is scheduled. 0 is the kubelet's
	// behaviour.
	SystemReserve *resource.Quantity `json:"systemReserve,omitempty"`

	// ReclaimMargin is the share of a container's memory.max that its memory.min
	// leaves unprotected, from 0 up to, not including, 1; above 0 at least 2Mi.
	// Where memory.min is memory.max, as in Guaranteed pods, the page cache of a
	// container cannot be reclaimed for its pod, which is killed for it
	// (kubernetes#126485). Default: 0.01. 0 is the kubelet's behaviour.
	ReclaimMargin *float64 `json:"reclaimMargin,omitempty"`
}

// Mode says whether memqos writes.
type Mode string

// The modes.
const (
	Enforce Mode = "Enforce" // files are written
	DryRun  Mode = "DryRun"  // nothing is written; what would be is reported
)

// Switch turns something on or off. Empty is not set.
type Switch string

// The positions of a Switch.
const (
	Enabled  Switch = "Enabled"
	Disabled Switch = "Disabled"
)

// RestoreOnExit says whether the agent undoes its writes when it ends.
type RestoreOnExit string

// When the agent undoes its writes.
const (
	RestoreAuto   RestoreOnExit = "Auto"    // when its DaemonSet is being deleted
	RestoreNever  RestoreOnExit = "Keep"    // never
	RestoreAlways RestoreOnExit = "Restore" // at every end
)

// BundleID stands for the container's id in BundlePaths.
const BundleID = "<id>"

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
	out.MemoryThrottlingFactor = clone(c.MemoryThrottlingFactor)
	out.Rules = slices.Clone(c.Rules)
	for i := range out.Rules {
		r := &out.Rules[i]
		r.MemoryThrottlingFactor = clone(r.MemoryThrottlingFactor)
		if r.Match = clone(r.Match); r.Match != nil {
			r.Match.Namespaces = slices.Clone(r.Match.Namespaces)
			r.Match.PodSelector = r.Match.PodSelector.DeepCopy()
			r.Match.QOSClasses = slices.Clone(r.Match.QOSClasses)
			r.Match.PriorityClassNames = slices.Clone(r.Match.PriorityClassNames)
		}
	}
	out.StallGuard.Enabled = clone(c.StallGuard.Enabled)
	out.StallGuard.StallShare = clone(c.StallGuard.StallShare)
	if q := c.Rails.SystemReserve; q != nil {
		out.Rails.SystemReserve = new(q.DeepCopy())
	}
	out.Rails.ReclaimMargin = clone(c.Rails.ReclaimMargin)
	out.BundlePaths = slices.Clone(c.BundlePaths)
	return &out
}

func clone[T any](p *T) *T {
	if p == nil {
		return nil
	}
	return new(*p)
}
