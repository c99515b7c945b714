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
	// PageSize is the kernel's page size in bytes.
	PageSize int64
}

// Policy is the MemoryQoS of one Kubernetes release on one node.
type Policy struct {
	node    Node
	factor  float64
	release release
	// reserve: requests are protected. Only from 1.36 can they not be.
	reserve bool
}

// NewPolicy returns the policy that a defaulted, valid configuration asks for.
func NewPolicy(c *config.MemoryQoSConfiguration, node Node) Policy {
	return Policy{
		node:    node,
		factor:  *c.MemoryThrottlingFactor,
		release: releaseOf(c.EmulationVersion),
		reserve: c.MemoryReservationPolicy != config.NoReservation,
	}
}

// Node returns what is wanted of kubepods and of the Burstable class: the sums
// of the requests of the pods that are not done, and 0 without any. The kubelet
// up to 1.35 writes a sum only when it is above 0 and so leaves a stale one
// behind; here it is always written.
//
// The sums follow the spec, also where an in-place resize is waiting: so do the
// kubelet's (GetActivePods and not getAllocatedPods feeds them).
func (p Policy) Node(pods []corev1.Pod) []Cgroup {
	var guaranteed, burstable int64
	var guaranteedPods, burstablePods int
	for i := range pods {
		pod := &pods[i]
		if !Active(pod) {
			continue
		}
		switch Class(pod) {
		case corev1.PodQOSGuaranteed:
			guaranteed = add(guaranteed, podRequest(pod))
			guaranteedPods++
		case corev1.PodQOSBurstable:
			burstable = add(burstable, podRequest(pod))
			burstablePods++
		}
	}
	both := fmt.Sprintf("sum of the requests of %d Guaranteed and %d Burstable pods", guaranteedPods, burstablePods)
	ofBurstable := fmt.Sprintf("sum of the requests of %d Burstable pods", burstablePods)

	kubepods := Cgroup{Level: LevelNode}
	class := Cgroup{Level: LevelQOS, QOSClass: corev1.PodQOSBurstable}
	switch {
	case !p.release.tiered:
		kubepods.set(memory.Min, p.bytes(add(guaranteed, burstable)), both)
		class.set(memory.Min, p.bytes(burstable), ofBurstable)
	case !p.reserve:
		p.reserveNothing(&kubepods)
		p.reserveNothing(&class)
	default:
		kubepods.set(memory.Min, p.bytes(add(guaranteed, burstable)), both)
		if p.release.rootLow {
			kubepods.set(memory.Low, p.bytes(burstable), ofBurstable)
		} else {
			kubepods.set(memory.Low, 0, "this release sets none at kubepods")
		}
		class.set(memory.Min, 0, lowInstead)
		class.set(memory.Low, p.bytes(burstable), ofBurstable)
	}
	return []Cgroup{kubepods, class}
}

// Pod returns what is wanted of the cgroup of a pod.
func (p Policy) Pod(pod *corev1.Pod) Cgroup {
	pod, resizing := p.actuated(pod)
	c := podCgroup(pod, LevelPod)
	request := podRequest(pod)
	overhead := ""
	if pod.Spec.Overhead.Memory().Sign() > 0 {
		overhead = ", overhead included"
	}
	p.protect(&c, request, "the pod's effective request "+human(request)+overhead)
	limit, limited := podLimit(pod)
	if p.release.podHigh {
		p.podHigh(&c, pod, request, limit)
	}
	if limited {
		c.set(memory.Max, p.bytes(limit), "the pod's effective limit "+human(limit)+overhead)
	}
	if resizing {
		c.leaveMax()
	}
	return c
}

// podHigh sets memory.high of the cgroup of a pod. It has one if it has
// pod-level resources, of whatever kind, and a memory limit, be it the sum of
// the containers'.
func (p Policy) podHigh(c *Cgroup, pod *corev1.Pod, request, limit int64) {
	switch {
	case !resourcehelper.IsPodLevelResourcesSet(pod):
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
	pod, resizing := p.actuated(pod)
	out := make([]Cgroup, 0, len(pod.Spec.InitContainers)+len(pod.Spec.Containers)+len(pod.Spec.EphemeralContainers))
	for i := range pod.Spec.InitContainers {
		out = append(out, p.container(pod, pod.Spec.InitContainers[i].Name, &pod.Spec.InitContainers[i].Resources))
	}
	for i := range pod.Spec.Containers {
		out = append(out, p.container(pod, pod.Spec.Containers[i].Name, &pod.Spec.Containers[i].Resources))
	}
	for i := range pod.Spec.EphemeralContainers {
		out = append(out, p.container(pod, pod.Spec.EphemeralContainers[i].Name, &pod.Spec.EphemeralContainers[i].Resources))
	}
	if resizing {
		for i := range out {
			out[i].leaveMax()
		}
	}
	return out
}

func (p Policy) container(pod *corev1.Pod, name string, r *corev1.ResourceRequirements) Cgroup {
	c := podCgroup(pod, LevelContainer)
	c.Container = name
	m := containerMemory{request: quantityBytes(r.Requests.Memory()), limit: quantityBytes(r.Limits.Memory()), podLimit: podLevelLimit(pod)}

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
	case p.node.Allocatable == 0:
		c.Reason[memory.High] = "left alone: no limit, and node allocatable is not known"
	default:
		p.throttle(&c, m.request, p.node.Allocatable, "node allocatable")
	}

	switch {
	case m.limit > 0:
		c.set(memory.Max, p.bytes(m.limit), "limit "+human(m.limit))
	case m.podLimit > 0:
		c.set(memory.Max, p.bytes(m.podLimit), "no limit of its own: the pod-level limit "+human(m.podLimit))
	}
	return c
}

// lowInstead is why a memory.min is 0 where memory.low protects.
const lowInstead = "not Guaranteed: memory.low protects"

// protect sets what protects the request of a pod or container.
func (p Policy) protect(c *Cgroup, request int64, reason string) {
	switch {
	case !p.release.tiered:
		c.set(memory.Min, p.bytes(request), reason)
	case !p.reserve:
		p.reserveNothing(c)
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

func (p Policy) reserveNothing(c *Cgroup) {
	for _, file := range []memory.File{memory.Min, memory.Low} {
		c.set(file, 0, "memoryReservationPolicy is None")
	}
}

// throttle sets memory.high between a request and top.
func (p Policy) throttle(c *Cgroup, request, top int64, topName string) {
	high, how := p.release.high(p, request, top, topName)
	if high == 0 || high <= request {
		c.set(memory.High, memory.Unlimited, fmt.Sprintf("%s = %s is not above the request", how, human(high)))
		return
	}
	c.set(memory.High, p.bytes(high), how)
}

// bytes is n as the kernel will read it back.
func (p Policy) bytes(n int64) memory.Value { return memory.Bytes(n, p.node.PageSize) }

func podCgroup(pod *corev1.Pod, level Level) Cgroup {
	return Cgroup{Level: level, QOSClass: Class(pod), Namespace: pod.Namespace, Pod: pod.Name, UID: string(pod.UID)}
}

// podRequest is the memory request of a pod in bytes: the greater of the sum
// over app containers and sidecars and of each init container's peak, or the
// pod-level request, and the overhead.
func podRequest(pod *corev1.Pod) int64 {
	requests := resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{ExcludeOverhead: true})
	return withOverhead(requests.Memory(), pod)
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
	limits := resourcehelper.PodLimits(pod, resourcehelper.PodResourcesOptions{ExcludeOverhead: true})
	if limits.Memory().IsZero() {
		return 0, false
	}
	limit := withOverhead(limits.Memory(), pod)
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
