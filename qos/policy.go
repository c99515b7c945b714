package qos

import (
	"fmt"
	"math"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"

	"github.com/memqos/memqos/config"
	"github.com/memqos/memqos/memory"
)

// Node is what the plan needs to know of a node.
type Node struct {
	// Allocatable is the memory that all pods together may use, in bytes:
	// capacity less systemReserved and kubeReserved, and not less evictionHard
	// (the kubelet's GetNodeAllocatableAbsolute). 0 is unknown: memory.high of a
	// container without a limit is then left alone.
	Allocatable int64
	// Capacity is the memory of the machine in bytes. 0 is unknown: nothing is then
	// held back for the system.
	Capacity int64
	// PageSize is the kernel's page size in bytes.
	PageSize int64
}

// Policy is the MemoryQoS of one Kubernetes release on one node, with what the
// configuration and the pods say otherwise.
type Policy struct {
	node    Node
	release release
	// standard applies to the pods of which nothing else is said.
	standard PodPolicy
	rules    []rule
	// systemReserve is what the sums leave of the node's capacity, in bytes.
	systemReserve int64
	// reclaimMargin is the share of memory.max that memory.min leaves.
	reclaimMargin float64
}

// NewPolicy returns the policy that a defaulted, valid configuration asks for.
// The configuration must not change afterwards.
func NewPolicy(c *config.MemoryQoSConfiguration, node Node) Policy {
	return Policy{
		node:    node,
		release: releaseOf(c.EmulationVersion),
		standard: PodPolicy{
			ThrottlingFactor: Setting[float64]{Value: *c.MemoryThrottlingFactor},
			MemoryHigh:       Setting[bool]{Value: true},
			Reserve:          Setting[bool]{Value: c.MemoryReservationPolicy != config.NoReservation},
			StallGuard:       Setting[bool]{Value: *c.StallGuard.Enabled},
		},
		rules:         rulesOf(c),
		systemReserve: quantityBytes(c.Rails.SystemReserve),
		reclaimMargin: *c.Rails.ReclaimMargin,
	}
}

// podPlanner plans the cgroups of one pod.
type podPlanner struct {
	Policy
	PodPolicy
	// pod has the memory that its cgroups have been given; see actuated.
	pod      *corev1.Pod
	resizing bool
}

func (p Policy) planner(pod *corev1.Pod) podPlanner {
	out := podPlanner{Policy: p}
	out.PodPolicy, _ = p.For(pod)
	out.pod, out.resizing = p.actuated(pod)
	return out
}

// Node returns what is wanted of kubepods and of the Burstable class: the sums
// of the requests of the pods that are not done, and 0 without any. The kubelet
// up to 1.35 writes a sum only when it is above 0 and so leaves a stale one
// behind; here it is always written.
//
// The sums follow the spec, also where an in-place resize is waiting: so do the
// kubelet's (GetActivePods and not getAllocatedPods feeds them).
//
// A pod that is excluded, or whose requests are not protected, is not in the
// sums. Nothing beneath would claim its share, and where cgroup2 is mounted with
// memory_recursiveprot, as systemd does, the kernel would hand it to the others.
func (p Policy) Node(pods []corev1.Pod) []Cgroup {
	var guaranteed, burstable int64
	var guaranteedPods, burstablePods, excluded, unreserved int
	for i := range pods {
		pod := &pods[i]
		class := Class(pod)
		if !Active(pod) || class == corev1.PodQOSBestEffort {
			continue
		}
		switch applies, _ := p.For(pod); {
		case applies.Excluded.Value:
			excluded++
		case p.release.tiered && !applies.Reserve.Value:
			unreserved++
		case class == corev1.PodQOSGuaranteed:
			guaranteed = add(guaranteed, podRequest(pod))
			guaranteedPods++
		default:
			burstable = add(burstable, podRequest(pod))
			burstablePods++
		}
	}
	without := ""
	if excluded > 0 {
		without += fmt.Sprintf("; %d excluded", excluded)
	}
	if unreserved > 0 {
		without += fmt.Sprintf("; %d with memoryReservationPolicy None", unreserved)
	}
	both := fmt.Sprintf("sum of the requests of %d Guaranteed and %d Burstable pods", guaranteedPods, burstablePods) + without
	ofBurstable := fmt.Sprintf("sum of the requests of %d Burstable pods", burstablePods) + without

	kubepods := Cgroup{Level: LevelNode}
	class := Cgroup{Level: LevelQOS, QOSClass: corev1.PodQOSBurstable}
	switch {
	case !p.release.tiered:
		p.sum(&kubepods, memory.Min, add(guaranteed, burstable), both)
		p.sum(&class, memory.Min, burstable, ofBurstable)
	case !p.standard.Reserve.Value && guaranteedPods+burstablePods == 0:
		reserveNothing(&kubepods, noReservation)
		reserveNothing(&class, noReservation)
	default:
		p.sum(&kubepods, memory.Min, add(guaranteed, burstable), both)
		if p.release.rootLow {
			p.sum(&kubepods, memory.Low, burstable, ofBurstable)
		} else {
			kubepods.set(memory.Low, 0, "this release sets none at kubepods")
		}
		class.set(memory.Min, 0, lowInstead)
		p.sum(&class, memory.Low, burstable, ofBurstable)
	}
	return []Cgroup{kubepods, class}
}

// sum sets a sum over pods, as far as it leaves the system its reserve.
func (p Policy) sum(c *Cgroup, file memory.File, n int64, reason string) {
	if p.node.Capacity > 0 && p.systemReserve > 0 {
		if top := max(p.node.Capacity-p.systemReserve, 0); n > top {
			c.Rails = []Rail{SystemReserve}
			n, reason = top, fmt.Sprintf("node capacity %s - rails.systemReserve %s; without this rail %s, the %s",
				human(p.node.Capacity), human(p.systemReserve), human(n), reason)
		}
	}
	c.set(file, p.bytes(n), reason)
}

// Pod returns what is wanted of the cgroup of a pod. That of an excluded pod has
// reasons and no values, and so have its containers.
func (p Policy) Pod(pod *corev1.Pod) Cgroup {
	return p.planner(pod).podCgroup()
}

func (p podPlanner) podCgroup() Cgroup {
	c := cgroupOf(p.pod, LevelPod)
	request := podRequest(p.pod)
	overhead := ""
	if p.pod.Spec.Overhead.Memory().Sign() > 0 {
		overhead = ", overhead included"
	}
	p.protect(&c, request, "the pod's effective request "+human(request)+overhead)
	limit, limited := podLimit(p.pod)
	if p.release.podHigh {
		p.podHigh(&c, request, limit)
	}
	if limited {
		c.set(memory.Max, p.bytes(limit), "the pod's effective limit "+human(limit)+overhead)
	}
	p.finish(&c)
	return c
}

// podHigh sets memory.high of the cgroup of a pod. It has one if it has
// pod-level resources, of whatever kind, and a memory limit, be it the sum of
// the containers'.
func (p podPlanner) podHigh(c *Cgroup, request, limit int64) {
	switch {
	case !resourcehelper.IsPodLevelResourcesSet(p.pod):
		c.set(memory.High, memory.Unlimited, "no pod-level resources: memory.high is the containers'")
	case limit == 0:
		c.set(memory.High, memory.Unlimited, "the pod has no memory limit")
	case request == limit:
		c.set(memory.High, memory.Unlimited, "the pod's request equals its limit")
	default:
		p.throttle(c, request, limit, "pod limit")
	}
}

// Containers returns what is wanted of the cgroup of each container of a pod:
// first the init containers and sidecars, then the app containers, then the
// ephemeral ones. The sandbox (pause container) is not among them: it gets
// nothing.
func (p Policy) Containers(pod *corev1.Pod) []Cgroup {
	return p.planner(pod).containerCgroups()
}

func (p podPlanner) containerCgroups() []Cgroup {
	spec := &p.pod.Spec
	out := make([]Cgroup, 0, len(spec.InitContainers)+len(spec.Containers)+len(spec.EphemeralContainers))
	for i := range spec.InitContainers {
		out = append(out, p.container(spec.InitContainers[i].Name, &spec.InitContainers[i].Resources))
	}
	for i := range spec.Containers {
		out = append(out, p.container(spec.Containers[i].Name, &spec.Containers[i].Resources))
	}
	for i := range spec.EphemeralContainers {
		out = append(out, p.container(spec.EphemeralContainers[i].Name, &spec.EphemeralContainers[i].Resources))
	}
	return out
}

// AllocatableUnknown is the reason of a memory.high that could be told if
// Node.Allocatable were known.
const AllocatableUnknown = "left alone: no limit, and node allocatable is not known"

func (p podPlanner) container(name string, r *corev1.ResourceRequirements) Cgroup {
	c := cgroupOf(p.pod, LevelContainer)
	c.Container = name
	m := containerMemory{request: quantityBytes(r.Requests.Memory()), limit: quantityBytes(r.Limits.Memory()), podLimit: podLevelLimit(p.pod)}

	if m.request > 0 {
		p.protect(&c, m.request, "request "+human(m.request))
	} else {
		p.protect(&c, 0, "no request")
	}

	switch why := p.release.withoutHigh(m); {
	case why != "":
		c.set(memory.High, memory.Unlimited, why)
	case m.limit > 0:
		p.throttle(&c, m.request, m.limit, "limit")
	case p.node.Allocatable == 0 && p.MemoryHigh.Value:
		c.Reason[memory.High] = AllocatableUnknown
		c.Waits = append(c.Waits, memory.High)
	default:
		p.throttle(&c, m.request, p.node.Allocatable, "node allocatable")
	}

	switch {
	case m.limit > 0:
		c.set(memory.Max, p.bytes(m.limit), "limit "+human(m.limit))
	case m.podLimit > 0:
		c.set(memory.Max, p.bytes(m.podLimit), "no limit of its own: the pod-level limit "+human(m.podLimit))
	}
	p.finish(&c)
	return c
}

// finish applies to a cgroup of a pod what does not depend on its level.
func (p podPlanner) finish(c *Cgroup) {
	p.leaveReclaimable(c)
	if p.resizing {
		c.leaveMax()
	}
	for _, file := range p.Keep {
		c.leave(file, "annotation "+AnnotationKeep)
	}
	if p.Excluded.Value {
		clear(c.Values)
		for file := range c.Reason {
			c.Reason[file] = "left alone: excluded by " + p.Excluded.By
		}
	}
}

// leastMargin is the least that a reclaimMargin above 0 leaves, in bytes: more than the
// sandbox of a pod, which is charged to the pod and no container, takes of its limit.
const leastMargin = 2 << 20

// leaveReclaimable lowers a container's memory.min that would leave too little of its
// memory.max for the kernel to reclaim from. Its pod's stays: a limit that is reached
// is reclaimed from whatever memory.min its own cgroup has.
func (p Policy) leaveReclaimable(c *Cgroup) {
	limit, limited := c.Values[memory.Max]
	if p.reclaimMargin == 0 || c.Level != LevelContainer || !limited || limit == memory.Unlimited {
		return
	}
	margin := max(int64(float64(limit)*p.reclaimMargin), leastMargin)
	if top := p.bytes(max(int64(limit)-margin, 0)); c.Values[memory.Min] > top {
		c.Rails = []Rail{ReclaimMargin}
		c.set(memory.Min, top, fmt.Sprintf("%s: leaves %s of memory.max, by rails.reclaimMargin", c.Reason[memory.Min], human(margin)))
	}
}

// lowInstead is why a memory.min is 0 where memory.low protects.
const lowInstead = "not Guaranteed: memory.low protects"

// noReservation is why nothing is protected where the configuration says so.
const noReservation = "memoryReservationPolicy is None"

// protect sets what protects the request of a pod or container.
func (p podPlanner) protect(c *Cgroup, request int64, reason string) {
	switch {
	case !p.release.tiered:
		c.set(memory.Min, p.bytes(request), reason)
	case !p.Reserve.Value:
		reserveNothing(c, noReservation+of(p.Reserve.By))
	case request == 0:
		c.set(memory.Min, 0, reason)
		c.set(memory.Low, 0, reason)
	case c.QOSClass == corev1.PodQOSGuaranteed:
		c.set(memory.Min, p.bytes(request), reason)
		c.set(memory.Low, 0, "Guaranteed: memory.min protects")
	default:
		c.set(memory.Min, 0, lowInstead)
		c.set(memory.Low, p.bytes(request), reason)
	}
}

func reserveNothing(c *Cgroup, why string) {
	for _, file := range []memory.File{memory.Min, memory.Low} {
		c.set(file, 0, why)
	}
}

// throttle sets memory.high between a request and top.
func (p podPlanner) throttle(c *Cgroup, request, top int64, topName string) {
	if !p.MemoryHigh.Value {
		c.set(memory.High, memory.Unlimited, "turned off by "+p.MemoryHigh.By)
		return
	}
	high, how := p.release.high(p, request, top, topName)
	how += of(p.ThrottlingFactor.By)
	if high == 0 || high <= request {
		c.set(memory.High, memory.Unlimited, fmt.Sprintf("%s = %s is not above the request", how, human(high)))
		return
	}
	c.set(memory.High, p.bytes(high), how)
}

// of names who decided, where it was not the configuration as a whole.
func of(by string) string {
	if by == "" {
		return ""
	}
	return " (" + by + ")"
}

// bytes is n as the kernel will read it back.
func (p Policy) bytes(n int64) memory.Value { return memory.Bytes(n, p.node.PageSize) }

func cgroupOf(pod *corev1.Pod, level Level) Cgroup {
	return Cgroup{Level: level, QOSClass: Class(pod), Namespace: pod.Namespace, Pod: pod.Name, UID: string(pod.UID)}
}

// podRequest is the memory request of a pod in bytes: the greater of the sum
// over app containers and sidecars and of each init container's peak, or the
// pod-level request, and the overhead.
func podRequest(pod *corev1.Pod) int64 {
	if plain(pod) {
		return withOverhead(sumOf(pod, requestsOf), pod)
	}
	requests := resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{ExcludeOverhead: true})
	return withOverhead(requests.Memory(), pod)
}

// plain reports whether a pod asks for the sum of what its containers ask for, as
// most do. It is worth telling: PodRequests and PodLimits make lists of all
// resources, four fifths of what the sums over a node's pods cost.
func plain(pod *corev1.Pod) bool {
	return len(pod.Spec.InitContainers) == 0 && pod.Spec.Resources == nil
}

func requestsOf(r *corev1.ResourceRequirements) *resource.Quantity { return r.Requests.Memory() }

func limitsOf(r *corev1.ResourceRequirements) *resource.Quantity { return r.Limits.Memory() }

// sumOf is a sum over the app containers of a pod.
func sumOf(pod *corev1.Pod, of func(*corev1.ResourceRequirements) *resource.Quantity) *resource.Quantity {
	sum := resource.Quantity{Format: resource.BinarySI}
	for i := range pod.Spec.Containers {
		sum.Add(*of(&pod.Spec.Containers[i].Resources))
	}
	return &sum
}

// podLimit is the memory limit of a pod's own cgroup in bytes. There is one only
// where every container has one (or the pod as a whole): the kubelet sets none
// for a pod of which one container is unlimited, nor for BestEffort.
func podLimit(pod *corev1.Pod) (int64, bool) {
	if Class(pod) == corev1.PodQOSBestEffort {
		return 0, false
	}
	if podLevelLimit(pod) == 0 {
		for _, containers := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
			for i := range containers {
				if containers[i].Resources.Limits.Memory().IsZero() {
					return 0, false
				}
			}
		}
	}
	var sum *resource.Quantity
	if plain(pod) {
		sum = sumOf(pod, limitsOf)
	} else {
		limits := resourcehelper.PodLimits(pod, resourcehelper.PodResourcesOptions{ExcludeOverhead: true})
		sum = limits.Memory()
	}
	if sum.IsZero() {
		return 0, false
	}
	limit := withOverhead(sum, pod)
	return limit, limit > 0
}

// withOverhead is a request or limit and the pod's overhead, in bytes. It adds
// to a copy: what PodRequests and PodLimits return shares the number with
// spec.resources where that is no int64 (such as 1.5Gi), and if they add the
// overhead themselves it grows in the pod with every call.
func withOverhead(q *resource.Quantity, pod *corev1.Pod) int64 {
	sum := q.DeepCopy()
	sum.Add(*pod.Spec.Overhead.Memory())
	return quantityBytes(&sum)
}

// podLevelLimit is the memory limit that spec.resources gives a pod as a whole,
// in bytes and without overhead; 0 is none. The kubelet makes it memory.max of
// the containers that have no limit of their own (getMemoryLimit).
func podLevelLimit(pod *corev1.Pod) int64 {
	if pod.Spec.Resources == nil {
		return 0
	}
	return quantityBytes(pod.Spec.Resources.Limits.Memory())
}

func quantity(bytes int64) *resource.Quantity { return resource.NewQuantity(bytes, resource.BinarySI) }

var maxQuantity = *quantity(math.MaxInt64)

// quantityBytes is a quantity rounded up to bytes, not below 0, and not above
// what an int64 holds (a sum of quantities may be).
func quantityBytes(q *resource.Quantity) int64 {
	switch {
	case q.Sign() <= 0:
		return 0
	case q.Cmp(maxQuantity) >= 0:
		return math.MaxInt64
	}
	return q.Value()
}

// add returns a + b, both not negative, not above what an int64 holds.
func add(a, b int64) int64 {
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}

func human(n int64) string { return memory.Value(n).Human() }
