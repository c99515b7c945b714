package qos

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/memqos/memqos/memory"
)

// Level is the place of a cgroup in the kubelet's tree.
type Level string

// The levels, from the top of the tree down.
const (
	LevelNode      Level = "node"      // kubepods, with the Guaranteed pods directly beneath
	LevelQOS       Level = "qos"       // burstable or besteffort
	LevelPod       Level = "pod"       //
	LevelContainer Level = "container" // app, init, sidecar or ephemeral container
)

// Cgroup is what the plan wants of one cgroup.
type Cgroup struct {
	Level Level `json:"level"`
	// Cgroup is the path below the cgroup2 mount, without a leading slash. The
	// plan leaves it empty: it is filled in by who knows the tree's layout.
	Cgroup    string             `json:"cgroup"`
	QOSClass  corev1.PodQOSClass `json:"qosClass"`
	Namespace string             `json:"namespace"`
	Pod       string             `json:"pod"`
	UID       string             `json:"uid"`
	Container string             `json:"container"`
	// Values holds the files that are managed at this level, and no others.
	Values memory.Values `json:"values"`
	// Reason says in words how each value came about.
	Reason map[memory.File]string `json:"reason"`
	// Rails are the rails that keep a value of this cgroup below what is asked for.
	Rails []Rail `json:"-"`
	// Waits are files of which nothing can be said for now, such as memory.max while
	// a pod is being resized. What is in neither Waits nor Values is not, or no
	// longer, memqos's to set.
	Waits []memory.File `json:"-"`
}

// Rail is a field of the configuration's rails that bounds what is protected.
type Rail string

// The rails.
const (
	SystemReserve Rail = "systemReserve"
	ReclaimMargin Rail = "reclaimMargin"
)

func (c *Cgroup) set(file memory.File, v memory.Value, reason string) {
	if c.Values == nil {
		c.Values, c.Reason = memory.Values{}, map[memory.File]string{}
	}
	c.Values[file], c.Reason[file] = v, reason
}

// leave takes a file out of the plan.
func (c *Cgroup) leave(file memory.File, why string) {
	if _, ok := c.Values[file]; ok {
		delete(c.Values, file)
		c.Reason[file] = "left alone: " + why
	}
}

// Plan is what is wanted of every cgroup of a node.
type Plan struct {
	metav1.TypeMeta `json:",inline"`
	Cgroups         []Cgroup `json:"cgroups"`
}

// PlanFor returns the plan for the pods of one node: kubepods, the Burstable
// class, then each pod followed by its containers, in the order given. Pods that
// are done have no part in it.
func (p Policy) PlanFor(pods []corev1.Pod) Plan {
	plan := Plan{
		TypeMeta: metav1.TypeMeta{APIVersion: "memqos.io/v1alpha1", Kind: "Plan"},
		Cgroups:  p.Node(pods),
	}
	for i := range pods {
		if Active(&pods[i]) {
			planner := p.planner(&pods[i])
			plan.Cgroups = append(plan.Cgroups, planner.podCgroup())
			plan.Cgroups = append(plan.Cgroups, planner.containerCgroups()...)
		}
	}
	return plan
}
