package qos

import (
	"fmt"
	"math"
	"strconv"

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
	node   Node
	factor float64
	high   highFormula
}

// NewPolicy returns the policy that a defaulted, valid configuration asks for.
func NewPolicy(c *config.MemoryQoSConfiguration, node Node) Policy {
	p := Policy{node: node, factor: *c.MemoryThrottlingFactor, high: highOfLimit}
	if c.EmulationVersion.AtLeast(27) {
		p.high = highBetweenRequestAndLimit
	}
	return p
}

// Node returns what is wanted of kubepods and of the Burstable class: the sums
// of the requests of the pods that are not done, and 0 without any. The kubelet
// up to 1.35 writes a sum only when it is above 0 and so leaves a stale one
// behind; here it is always written.
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
	kubepods := Cgroup{Level: LevelNode}
	kubepods.set(memory.Min, p.bytes(add(guaranteed, burstable)),
		fmt.Sprintf("sum of the requests of %d Guaranteed and %d Burstable pods", guaranteedPods, burstablePods))
	class := Cgroup{Level: LevelQOS, QOSClass: corev1.PodQOSBurstable}
	class.set(memory.Min, p.bytes(burstable), fmt.Sprintf("sum of the requests of %d Burstable pods", burstablePods))
	return []Cgroup{kubepods, class}
}

// Pod returns what is wanted of the cgroup of a pod.
func (p Policy) Pod(pod *corev1.Pod) Cgroup {
	c := podCgroup(pod, LevelPod)
	request := podRequest(pod)
	reason := "the pod's effective request " + human(request)
	if pod.Spec.Overhead.Memory().Sign() > 0 {
		reason += ", overhead included"
	}
	c.set(memory.Min, p.bytes(request), reason)
	if limit, ok := podLimit(pod); ok {
		c.set(memory.Max, p.bytes(limit), "the pod's effective limit "+human(limit))
	}
	return c
}

// Containers returns what is wanted of the cgroup of each container of a pod:
// first the init containers and sidecars, then the app containers, then the
// ephemeral ones. The sandbox (pause container) is not among them: it gets
// nothing.
func (p Policy) Containers(pod *corev1.Pod) []Cgroup {
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
	return out
}

func (p Policy) container(pod *corev1.Pod, name string, r *corev1.ResourceRequirements) Cgroup {
	c := podCgroup(pod, LevelContainer)
	c.Container = name
	request, limit := quantityBytes(r.Requests.Memory()), quantityBytes(r.Limits.Memory())

	if request > 0 {
		c.set(memory.Min, p.bytes(request), "request "+human(request))
	} else {
		c.set(memory.Min, 0, "no request")
	}

	top, topName := limit, "limit"
	if limit == 0 {
		top, topName = p.node.Allocatable, "node allocatable"
	}
	high, how := p.high(p, request, limit, top, topName)
	switch {
	case how == "" && limit == 0:
		c.set(memory.High, memory.Unlimited, "neither request nor limit")
	case how == "":
		c.set(memory.High, memory.Unlimited, "the request equals the limit")
	case top == 0:
		c.Reason[memory.High] = "left alone: no limit, and node allocatable is not known"
	case high == 0 || high <= request:
		c.set(memory.High, memory.Unlimited, fmt.Sprintf("%s = %s is not above the request", how, human(high)))
	default:
		c.set(memory.High, p.bytes(high), how)
	}

	if limit > 0 {
		c.set(memory.Max, p.bytes(limit), "limit "+human(limit))
	}
	return c
}

// highFormula computes memory.high, in bytes, of a container. top is its limit
// or, when it has none (limit 0), node allocatable. how is the formula in words,
// and empty when the release does not apply one to this container.
type highFormula func(p Policy, request, limit, top int64, topName string) (high int64, how string)

// highOfLimit is the formula of 1.22 to 1.26. Every container gets it.
func highOfLimit(p Policy, _, _, top int64, topName string) (int64, string) {
	return int64(float64(top) * p.factor),
		fmt.Sprintf("%s x %s %s", p.factorText(), topName, human(top))
}

// highBetweenRequestAndLimit is the formula of 1.27 to 1.35.
//
// The operations are in the kubelet's order and the product is not converted:
// where the compiler fuses multiplication and addition (arm64), it does so in
// the kubelet too, and the results stay the same to the last bit.
func highBetweenRequestAndLimit(p Policy, request, limit, top int64, topName string) (int64, string) {
	if request == limit {
		return 0, ""
	}
	high := int64(math.Floor(
		float64(request)+(float64(top)-float64(request))*p.factor)/float64(p.node.PageSize)) * p.node.PageSize
	return high, fmt.Sprintf("request %s + %s x (%s %s - request)", human(request), p.factorText(), topName, human(top))
}

func (p Policy) factorText() string { return strconv.FormatFloat(p.factor, 'g', -1, 64) }

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
	if pod.Spec.Resources == nil || pod.Spec.Resources.Limits.Memory().IsZero() {
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

var maxQuantity = *resource.NewQuantity(math.MaxInt64, resource.BinarySI)

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
