// Package metrics owns what Prometheus sees of memqos: the names, labels and
// help texts of its series.
package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/memqos/memqos/memory"
)

// Result is what came of a write.
type Result string

// The results of a write.
const (
	Written   Result = "written"    // the kernel holds the value
	NotKept   Result = "not_kept"   // the kernel showed another value a moment later
	Gone      Result = "gone"       // the cgroup was removed in the meantime
	Deferred  Result = "deferred"   // not tried: memory.max would fall on what is in use
	BackedOff Result = "backed_off" // not tried yet: somebody else keeps writing the file
	Contested Result = "contested"  // hardly tried any more: somebody else keeps writing the file
	Landing   Result = "landing"    // under way: memory.high is lowered below usage in steps
	DryRun    Result = "dry_run"    // not tried: mode is DryRun
	Failed    Result = "failed"     // the kernel refused
)

// Cause says who wrote over a value, as far as the value shows.
type Cause string

// The causes of a repair.
const (
	// Reset is the kernel's default: systemd and a runtime's update leave it.
	Reset Cause = "reset"
	// Foreign is any other value.
	Foreign Cause = "foreign"
)

var (
	results = []Result{Written, NotKept, Gone, Deferred, BackedOff, Contested, Landing, DryRun, Failed}
	levels  = []string{"node", "qos", "pod", "container"}
	rails   = []string{"systemReserve", "reclaimMargin"}
)

// Metrics are the series of one agent.
type Metrics struct {
	registerer    prometheus.Registerer
	writes        *prometheus.CounterVec
	repairs       *prometheus.CounterVec
	kubelet       *prometheus.GaugeVec
	contested     prometheus.Gauge
	drifted       *prometheus.GaugeVec
	landings      prometheus.Gauge
	railed        *prometheus.GaugeVec
	landed        *prometheus.CounterVec
	guardChanges  *prometheus.CounterVec
	guarded       *prometheus.GaugeVec
	ooms          *prometheus.CounterVec
	annotations   prometheus.Counter
	reloads       *prometheus.CounterVec
	reloadOK      prometheus.Gauge
	reloadTime    prometheus.Gauge
	watches       prometheus.Gauge
	unwatched     prometheus.Gauge
	eventsLost    prometheus.Counter
	refused       prometheus.Counter
	timeToValue   prometheus.Histogram
	cgroups       *prometheus.GaugeVec
	skipped       *prometheus.CounterVec
	unsupported   *prometheus.GaugeVec
	feature       *prometheus.GaugeVec
	config        *prometheus.GaugeVec
	factor        prometheus.Gauge
	protected     *prometheus.GaugeVec
	allocatable   prometheus.Gauge
	fullPasses    prometheus.Counter
	fullPassTime  prometheus.Gauge
	fullPassTaken prometheus.Gauge
}

// New makes the series and registers them.
func New(reg prometheus.Registerer, version, revision, goVersion string) *Metrics {
	m := &Metrics{
		registerer: reg,
		writes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "memqos_writes_total",
			Help: "Writes to memory.* files, by the level of the cgroup, the file and what came of it. A node on which nothing changes has none.",
		}, []string{"level", "file", "result"}),
		repairs: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "memqos_repairs_total",
			Help: "Values of memqos that somebody else overwrote and that were put back, by the level of the cgroup, the file and the cause: reset (to the kernel's default, as systemd and a runtime's update do) or foreign.",
		}, []string{"level", "file", "cause"}),
		kubelet: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "memqos_file_left_to_kubelet",
			Help: "1 while the kubelet's own MemoryQoS writes the file and memqos stands down for it, else 0.",
		}, []string{"file"}),
		contested: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "memqos_contested_files",
			Help: "Files that somebody else keeps writing, which are therefore hardly repaired any more.",
		}),
		drifted: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "memqos_drifted_files",
			Help: "Files that did not hold what is wanted after the last full pass, by the level of the cgroup: because the mode is DryRun, a limit waits or lands, somebody else keeps writing, or the kernel refuses.",
		}, []string{"level", "file"}),
		railed: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "memqos_railed_cgroups",
			Help: "Cgroups whose protection the last full pass held below what is requested, by the field of the configuration's rails.",
		}, []string{"rail"}),
		landings: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "memqos_landings",
			Help: "Cgroups whose memory.high is being lowered below usage, in steps, or waits for that.",
		}),
		landed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "memqos_landings_total",
			Help: "Ends of stepwise lowerings of memory.high, by result: written, or deferred where nothing could be reclaimed and the old value was put back for a time.",
		}, []string{"result"}),
		guardChanges: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "memqos_guard_changes_total",
			Help: "Times the stall guard raised memory.high of a stalled cgroup (MemoryThrottleRelaxed) or brought it back to the plan (MemoryThrottleRestored).",
		}, []string{"reason"}),
		guarded: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "memqos_guarded_cgroups",
			Help: "Cgroups that the stall guard looks after, by state: all; armed, which are being read once a second or two; relaxed, whose memory.high is raised.",
		}, []string{"state"}),
		ooms: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "memqos_oom_kills_total",
			Help: "Containers of which processes were killed for memory, by what ran out.",
		}, []string{"cause"}),
		annotations: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "memqos_annotations_ignored_total",
			Help: "Annotations of pods that were passed over because their value cannot be meant.",
		}),
		reloads: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "memqos_config_reloads_total",
			Help: "Changes of the configuration file, by result: success, or failure, which keeps the last one.",
		}, []string{"result"}),
		reloadOK: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "memqos_config_last_reload_successful",
			Help: "1 if the configuration file is the one that is used, 0 if it was refused and an earlier one stays.",
		}),
		reloadTime: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "memqos_config_last_reload_success_timestamp_seconds",
			Help: "When a configuration was last taken over, in seconds since the epoch; 0 before the first change.",
		}),
		watches: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "memqos_watched_cgroups",
			Help: "Cgroups of which the kernel tells what happens to them. 0 while a node is served: all are polled.",
		}),
		unwatched: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "memqos_unwatched_cgroups",
			Help: "Cgroups that are polled because the kernel refused a watch (fs.inotify.max_user_watches).",
		}),
		eventsLost: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "memqos_event_overflows_total",
			Help: "Times the kernel's queue of events was full and a full pass looked for what was lost.",
		}),
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "memqos_bundles_refused_total",
			Help: "OCI bundles that were not believed: malformed, too large, or of another cgroup.",
		}),
		timeToValue: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "memqos_time_to_value_seconds",
			Help:    "Time from the creation of a container's cgroup to the first value in it.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14), // to 4 s
		}),
		cgroups: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "memqos_cgroups",
			Help: "Cgroups that were identified and compared in the last full pass, by level.",
		}, []string{"level"}),
		skipped: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "memqos_pods_skipped_total",
			Help: "Times a pod was left alone, by reason.",
		}, []string{"reason"}),
		unsupported: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "memqos_node_unsupported",
			Help: "1 while this node cannot be served and the agent idles, by reason; no series while it is served.",
		}, []string{"reason"}),
		feature: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "memqos_feature_enabled",
			Help: "1 if the feature gate is on, else 0.",
		}, []string{"name"}),
		config: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "memqos_config_info",
			Help: "Always 1; the labels say what the configuration in use has, after its defaults.",
		}, []string{"emulation_version", "mode", "reservation_policy"}),
		factor: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "memqos_config_throttling_factor",
			Help: "Factor of memory.high of the configuration in use; rules and annotations may have others for their pods.",
		}),
		protected: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "memqos_protected_bytes",
			Help: "Sum over the cgroups of a level of what their memory.min or memory.low should be, as of the last full pass.",
		}, []string{"level", "file"}),
		allocatable: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "memqos_node_allocatable_bytes",
			Help: "Memory that all pods together may use, from which memory.high of containers without a limit follows; 0 if not known.",
		}),
		fullPasses: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "memqos_full_passes_total",
			Help: "Passes over every cgroup of the node that were completed.",
		}),
		fullPassTime: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "memqos_last_full_pass_timestamp_seconds",
			Help: "When the last full pass was completed, in seconds since the epoch; 0 before the first.",
		}),
		fullPassTaken: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "memqos_last_full_pass_duration_seconds",
			Help: "How long the last full pass took.",
		}),
	}
	buildInfo := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "memqos_build_info",
		Help: "Always 1; the labels say what is running.",
	}, []string{"version", "revision", "goversion"})
	buildInfo.WithLabelValues(version, revision, goVersion).Set(1)
	reg.MustRegister(m.writes, m.repairs, m.kubelet, m.contested, m.ooms, m.landings, m.railed, m.landed, m.guardChanges, m.guarded, m.drifted, m.annotations, m.reloads, m.reloadOK, m.reloadTime, m.watches, m.unwatched, m.eventsLost, m.refused, m.timeToValue, m.cgroups, m.skipped, m.unsupported, m.feature, m.config, m.factor, m.protected, m.allocatable, m.fullPasses, m.fullPassTime, m.fullPassTaken, buildInfo)

	for _, result := range []Result{Written, Deferred} {
		m.landed.WithLabelValues(string(result))
	}
	for _, cause := range []string{"ContainerLimit", "PodLimit", "QOSLimit", "KubepodsLimit", "NodeOutOfMemory", "GroupKill", "Unknown"} {
		m.ooms.WithLabelValues(cause)
	}
	for _, reason := range []string{"MemoryThrottleRelaxed", "MemoryThrottleRestored"} {
		m.guardChanges.WithLabelValues(reason)
	}
	m.Guard(0, 0, 0)
	for _, rail := range rails {
		m.railed.WithLabelValues(rail)
	}
	m.reloadOK.Set(1)
	for _, result := range []string{"success", "failure"} {
		m.reloads.WithLabelValues(result)
	}
	// A counter that is not there cannot be told from one that is 0.
	for _, level := range levels {
		for _, file := range memory.Files {
			for _, result := range results {
				m.writes.WithLabelValues(level, string(file), string(result))
			}
			for _, cause := range []Cause{Reset, Foreign} {
				m.repairs.WithLabelValues(level, string(file), string(cause))
			}
		}
	}
	return m
}

// Write counts a write.
func (m *Metrics) Write(level string, file memory.File, result Result) {
	m.writes.WithLabelValues(level, string(file), string(result)).Inc()
}

// Repair counts a value that was put back.
func (m *Metrics) Repair(level string, file memory.File, cause Cause) {
	m.repairs.WithLabelValues(level, string(file), string(cause)).Inc()
}

// LeftToKubelet says whether a file is left to the kubelet's own MemoryQoS.
func (m *Metrics) LeftToKubelet(file memory.File, left bool) {
	value := 0.0
	if left {
		value = 1
	}
	m.kubelet.WithLabelValues(string(file)).Set(value)
}

// ContestedFiles says how many files are contested.
func (m *Metrics) ContestedFiles(n int) { m.contested.Set(float64(n)) }

// Watches says of how many cgroups the kernel tells, and of how many it does not.
func (m *Metrics) Watches(watched, unwatched int) {
	m.watches.Set(float64(watched))
	m.unwatched.Set(float64(unwatched))
}

// EventsLost counts an overflow of the kernel's queue.
func (m *Metrics) EventsLost() { m.eventsLost.Inc() }

// BundleRefused counts a bundle that was not believed.
func (m *Metrics) BundleRefused() { m.refused.Inc() }

// TimeToValue takes in how long a new container was without its values, in seconds.
func (m *Metrics) TimeToValue(seconds float64) { m.timeToValue.Observe(seconds) }

// Skipped counts a pod that was left alone.
func (m *Metrics) Skipped(reason string) { m.skipped.WithLabelValues(reason).Inc() }

// Supported says that the node is served, with this much allocatable memory in bytes.
func (m *Metrics) Supported(allocatable int64) {
	m.unsupported.Reset()
	m.allocatable.Set(float64(allocatable))
}

// Unsupported says that the node is not served.
func (m *Metrics) Unsupported(reason string) {
	m.unsupported.Reset()
	m.unsupported.WithLabelValues(reason).Set(1)
}

// Feature says whether a feature gate is on.
func (m *Metrics) Feature(name string, enabled bool) {
	value := 0.0
	if enabled {
		value = 1
	}
	m.feature.WithLabelValues(name).Set(value)
}

// Config says what the configuration in use has.
func (m *Metrics) Config(emulationVersion, mode, reservationPolicy string, factor float64) {
	m.config.Reset()
	m.config.WithLabelValues(emulationVersion, mode, reservationPolicy).Set(1)
	m.factor.Set(factor)
}

// Landings says how many landings there are.
func (m *Metrics) Landings(n int) { m.landings.Set(float64(n)) }

// Landed counts the end of a landing.
func (m *Metrics) Landed(result Result) { m.landed.WithLabelValues(string(result)).Inc() }

// GuardChanged counts a change of the stall guard's mind.
func (m *Metrics) GuardChanged(reason string) { m.guardChanges.WithLabelValues(reason).Inc() }

// Guard says how many cgroups are guarded, read often, and relaxed.
func (m *Metrics) Guard(all, armed, relaxed int) {
	m.guarded.WithLabelValues("all").Set(float64(all))
	m.guarded.WithLabelValues("armed").Set(float64(armed))
	m.guarded.WithLabelValues("relaxed").Set(float64(relaxed))
}

// OOM counts a container that was killed for memory.
func (m *Metrics) OOM(cause string) { m.ooms.WithLabelValues(cause).Inc() }

// AnnotationsIgnored counts annotations that were passed over.
func (m *Metrics) AnnotationsIgnored(n int) { m.annotations.Add(float64(n)) }

// Reloaded tells of a change of the configuration file.
func (m *Metrics) Reloaded(ok bool, at time.Time) {
	if !ok {
		m.reloads.WithLabelValues("failure").Inc()
		m.reloadOK.Set(0)
		return
	}
	m.reloads.WithLabelValues("success").Inc()
	m.reloadOK.Set(1)
	m.reloadTime.Set(float64(at.UnixNano()) / 1e9)
}

// Found is what a full pass has found, at each level: Cgroups that it compared,
// files that did not hold what is wanted, and bytes of protection that is wanted; and
// the cgroups that each rail bounds.
type Found struct {
	Cgroups   map[string]int
	Drifted   map[string]map[memory.File]int
	Protected map[string]map[memory.File]float64
	Railed    map[string]int
}

// FullPass reports a completed pass: when it ended and how long it took, in
// seconds, and what it found.
func (m *Metrics) FullPass(ended, took float64, f Found) {
	m.fullPasses.Inc()
	m.fullPassTime.Set(ended)
	m.fullPassTaken.Set(took)
	for _, rail := range rails {
		m.railed.WithLabelValues(rail).Set(float64(f.Railed[rail]))
	}
	for _, level := range levels {
		m.cgroups.WithLabelValues(level).Set(float64(f.Cgroups[level]))
		for _, file := range memory.Files {
			m.drifted.WithLabelValues(level, string(file)).Set(float64(f.Drifted[level][file]))
		}
		for _, file := range []memory.File{memory.Min, memory.Low} {
			m.protected.WithLabelValues(level, string(file)).Set(f.Protected[level][file])
		}
	}
}
