package status

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
	"unicode"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/memqos/memqos/config"
	"github.com/memqos/memqos/memory"
	"github.com/memqos/memqos/qos"
)

// The version and kind of the JSON.
const (
	APIVersion = "memqos.io/v1alpha1"
	Kind       = "NodeStatus"
)

// Verdict says how a cgroup stands.
type Verdict string

// The verdicts.
const (
	Fulfilled Verdict = "Fulfilled" // every managed file holds what is wanted
	Drifted   Verdict = "Drifted"   // some file holds another value
	Relaxed   Verdict = "Relaxed"   // memory.high is raised by the stall guard
	Pending   Verdict = "Pending"   // there is no cgroup yet, or a lowering waits for usage to fall
	Unknown   Verdict = "Unknown"   // neither the pod's status nor an OCI bundle says whose it is; left alone
)

// Sandbox stands for the name of a pod's pause container, which is left alone. No
// container can have it.
const Sandbox = "(sandbox)"

// NodeStatus is what is wanted and what is, of every cgroup of a node, and what
// happened lately.
type NodeStatus struct {
	metav1.TypeMeta `json:",inline"`
	// Node is the name of the Node.
	Node string `json:"node"`
	// Time is when the files were read.
	Time time.Time `json:"time"`
	// Agent is the agent that tells this. Absent where none answered and the files
	// were read without one.
	Agent *Agent `json:"agent,omitempty"`
	// Machine is what the node is made of.
	Machine Machine `json:"machine"`
	// AllocatableBytes is what memory.high of containers without a limit follows
	// from; 0 if not known.
	AllocatableBytes int64 `json:"allocatableBytes"`
	// Cgroups are kubepods, the QoS classes, and each pod followed by its
	// containers. Empty on a node that is not served.
	Cgroups []Cgroup `json:"cgroups"`
	// Kills are the last out-of-memory kills that the agent saw, the newest first;
	// those of containers that are gone among them.
	Kills []Kill `json:"kills,omitempty"`
}

// Machine is what a node is made of, as far as memory goes.
type Machine struct {
	Kernel       string `json:"kernel"`                 // uname -r
	CgroupDriver string `json:"cgroupDriver,omitempty"` // the kubelet's
	Kubepods     string `json:"kubepods,omitempty"`     // the cgroup of all pods
	// MountOptions are those of the cgroup2 mount, such as nsdelegate and
	// memory_recursiveprot.
	MountOptions []string `json:"mountOptions,omitempty"`
	// Pressure is whether the kernel counts pressure (PSI).
	Pressure      bool  `json:"pressure"`
	PageSize      int64 `json:"pageSize"`
	CapacityBytes int64 `json:"capacityBytes"` // 0 if not known
	SwapBytes     int64 `json:"swapBytes"`
}

// Agent is the state of an agent.
type Agent struct {
	Version string    `json:"version"`
	Started time.Time `json:"started"`
	// Idle is why the node is not served, and empty if it is: CgroupV1,
	// KernelTooOld, NoMemoryController, KubepodsNotFound, KubepodsAmbiguous,
	// NoCgroup2Mount, Inaccessible, AnotherAgent, StateInaccessible.
	Idle string `json:"idle,omitempty"`
	// IdleMessage is the same in words.
	IdleMessage string `json:"idleMessage,omitempty"`
	// Configuration is the one in use, with its defaults.
	Configuration *config.MemoryQoSConfiguration `json:"configuration"`
	// Refused is why a changed configuration is not in use; empty if it is.
	Refused string `json:"refused,omitempty"`
	// LastPass is when the last full pass ended; absent before the first has.
	LastPass *time.Time `json:"lastPass,omitempty"`
	// Watching is whether the kernel tells of every cgroup. Otherwise overwrites are
	// found by polling.
	Watching bool `json:"watching"`
	// LeftToKubelet are the files that the kubelet's own MemoryQoS is seen to write.
	LeftToKubelet []memory.File `json:"leftToKubelet,omitempty"`
	// KubeletConfigured are those of which the kubelet's configuration file says so.
	KubeletConfigured []memory.File `json:"kubeletConfigured,omitempty"`
}

// Cgroup is one cgroup of a NodeStatus.
type Cgroup struct {
	Level     qos.Level          `json:"level"`
	Cgroup    string             `json:"cgroup"`
	QOSClass  corev1.PodQOSClass `json:"qosClass"`
	Namespace string             `json:"namespace"`
	Pod       string             `json:"pod"`
	UID       string             `json:"uid"`
	Container string             `json:"container"`
	Verdict   Verdict            `json:"verdict"`
	// Since is how long the verdict has been so, as far as the agent saw.
	Since  *time.Time             `json:"since,omitempty"`
	Wanted memory.Values          `json:"wanted,omitempty"`
	Actual memory.Values          `json:"actual,omitempty"`
	Reason map[memory.File]string `json:"reason,omitempty"`
	// UsageBytes is memory.current.
	UsageBytes uint64 `json:"usageBytes"`
	// Events are the counters of memory.events, which include the descendants'.
	Events map[string]uint64 `json:"events,omitempty"`
	// Pressure is memory.pressure; absent where the kernel has PSI off.
	Pressure *Pressure `json:"pressure,omitempty"`
	// Relaxed is what the stall guard has done to memory.high.
	Relaxed *Relaxation `json:"relaxed,omitempty"`
	// Throttled is what memory.high did lately; absent if nothing.
	Throttled *Throttling `json:"throttled,omitempty"`
	// Changes are the last changes of the files that the agent saw, the newest first.
	Changes []Change `json:"changes,omitempty"`
}

// Pressure is a cgroup's memory.pressure: the share of time, in percent over 10
// seconds, and the total, in microseconds, in which some or all (full) of its
// tasks waited for memory.
type Pressure struct {
	SomeAvg10     float64 `json:"someAvg10"`
	SomeTotalUsec uint64  `json:"someTotalUsec"`
	FullAvg10     float64 `json:"fullAvg10"`
	FullTotalUsec uint64  `json:"fullTotalUsec"`
}

// Relaxation says that memory.high is above the plan for a while.
type Relaxation struct {
	Planned memory.Value `json:"planned"`
	Since   time.Time    `json:"since"`         // the last raise, or step back
	Why     string       `json:"why,omitempty"` // as the event said
}

// Throttling is what happened at memory.high between two moments.
type Throttling struct {
	From       time.Time `json:"from"`
	HighEvents uint64    `json:"highEvents"` // times over memory.high
	// Time in which some, or all, tasks waited for memory; 0 where the kernel has
	// PSI off.
	SomeUsec uint64 `json:"someUsec"`
	FullUsec uint64 `json:"fullUsec"`
}

// Writer is a class of those who write.
type Writer string

// The classes.
const (
	ByMemqos  Writer = "memqos"
	ByReset   Writer = "reset"   // the kernel's default: systemd, or a runtime's update
	ByForeign Writer = "foreign" // any other value: a person, another agent, a kubelet
)

// Change is a value that took the place of another.
type Change struct {
	Time  time.Time    `json:"time"` // the last of them
	File  memory.File  `json:"file"`
	By    Writer       `json:"by"`
	From  memory.Value `json:"from"`
	To    memory.Value `json:"to"`
	Count int          `json:"count"` // how many times the same
}

// Kill is an out-of-memory kill in a container.
type Kill struct {
	Time      time.Time `json:"time"`
	Namespace string    `json:"namespace"`
	Pod       string    `json:"pod"`
	Container string    `json:"container"`
	Cause     string    `json:"cause"` // as the event's reason, without OutOfMemory
	Message   string    `json:"message"`
}

// Compare says how a cgroup stands: what is wanted of it, what its files hold, what
// it uses. fits says whether memory.max can be lowered to a limit without killing.
func Compare(wanted, actual memory.Values, usage memory.Value, fits func(usage, limit memory.Value) bool) Verdict {
	if wanted == nil {
		return Unknown
	}
	v := Fulfilled
	for file, want := range wanted {
		got := actual[file]
		if got == want {
			continue
		}
		if want < got && (file == memory.Max && !fits(usage, want) || file == memory.High && usage > want) {
			if v == Fulfilled {
				v = Pending
			}
			continue
		}
		v = Drifted
	}
	return v
}

// Severity orders verdicts, the one that most asks for somebody first.
func (v Verdict) Severity() int {
	for i, other := range []Verdict{Drifted, Relaxed, Pending, Unknown, Fulfilled} {
		if v == other {
			return i
		}
	}
	return 0
}

// Rail is what the protection of a node's pods comes to, beside its bound.
type Rail struct {
	// Sum is what kubepods protects, memory.min and memory.low taken together.
	Sum memory.Value
	// Top is the most that the rail lets be protected; 0 if there is none.
	Top memory.Value
}

// Rail tells the node's protection against its rail.
func (s *NodeStatus) Rail() Rail {
	var r Rail
	for i := range s.Cgroups {
		if c := &s.Cgroups[i]; c.Level == qos.LevelNode {
			r.Sum = max(c.Wanted[memory.Min], c.Wanted[memory.Low])
		}
	}
	if s.Agent != nil && s.Agent.Configuration != nil && s.Machine.CapacityBytes > 0 {
		if q := s.Agent.Configuration.Rails.SystemReserve; q != nil && q.Sign() > 0 {
			r.Top = memory.Bytes(s.Machine.CapacityBytes-q.Value(), max(s.Machine.PageSize, 1))
		}
	}
	return r
}

// Plan is what the configuration in use, or another one, wants of pods on this node.
func (s *NodeStatus) Plan(c *config.MemoryQoSConfiguration, pods []corev1.Pod) qos.Plan {
	node := qos.Node{Allocatable: s.AllocatableBytes, Capacity: s.Machine.CapacityBytes, PageSize: max(s.Machine.PageSize, 1)}
	policy := qos.NewPolicy(c, node)
	return policy.PlanFor(pods)
}

// MaxSize is more bytes than the JSON of any node takes: 1 KiB for each of some
// thousand cgroups.
const MaxSize = 32 << 20

// Parse reads the JSON.
func Parse(data []byte) (*NodeStatus, error) {
	var s NodeStatus
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, fmt.Errorf("read the agent's answer: %w", err)
	}
	if s.APIVersion != APIVersion || s.Kind != Kind {
		return nil, fmt.Errorf("the agent's answer is a %q of %q, want a %s of %s", Printable(s.Kind), Printable(s.APIVersion), Kind, APIVersion)
	}
	return &s, nil
}

// Printable keeps what comes from others from steering a terminal.
func Printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}
