package qos

import (
	"fmt"
	"math"
	"strconv"

	"github.com/memqos/memqos/config"
)

// release is what sets the MemoryQoS of one Kubernetes release apart from that
// of the one before. Every difference is here and nowhere else.
type release struct {
	// minor is the first minor version of 1 that behaves so.
	minor int
	// high is the formula of memory.high.
	high highFormula
	// withoutHigh says in words why a container gets no memory.high, and is empty
	// for one that gets it.
	withoutHigh func(containerMemory) string
	// tiered: memory.low is managed beside memory.min, and
	// memoryReservationPolicy says what goes into them. Before, every request is
	// a memory.min and memory.low is nobody's.
	tiered bool
	// rootLow: kubepods has a memory.low. Without one, what the Burstable class
	// beneath asks for has no effect: the kernel grants protection top-down.
	rootLow bool
	// podHigh: memory.high is managed at pods, for pod-level limits.
	podHigh bool
}

var releases = []release{
	{minor: 22, high: highOfLimit, withoutHigh: func(containerMemory) string { return "" }},
	{minor: 27, high: highBetweenRequestAndLimit, withoutHigh: whereRequestIsLimit},
	{minor: 36, high: highBetweenRequestAndLimit, withoutHigh: whereRequestIsLimit, tiered: true},
	{minor: 37, high: highBetweenRequestAndLimit, withoutHigh: whereGuaranteedOrInPod, tiered: true, rootLow: true, podHigh: true},
}

func releaseOf(v config.EmulationVersion) release {
	r := releases[0]
	for _, later := range releases[1:] {
		if v.AtLeast(later.minor) {
			r = later
		}
	}
	return r
}

// containerMemory is the memory of a container in bytes; 0 is none.
type containerMemory struct {
	request, limit int64
	// podLimit is the pod-level limit of its pod.
	podLimit int64
}

// whereRequestIsLimit is the rule of 1.27 to 1.36. It takes a container with
// neither for one whose request is its limit.
func whereRequestIsLimit(m containerMemory) string {
	switch {
	case m.request != m.limit:
		return ""
	case m.limit == 0:
		return "neither request nor limit"
	}
	return "the request equals the limit"
}

// whereGuaranteedOrInPod is the rule of 1.37: a container with neither request
// nor limit is throttled too, and one that shares the pod's limit is throttled
// with the pod.
func whereGuaranteedOrInPod(m containerMemory) string {
	switch {
	case m.limit == 0 && m.podLimit > 0:
		return "no limit of its own: memory.high is the pod's"
	case m.request == m.limit && m.request > 0:
		return "the request equals the limit"
	}
	return ""
}

// highFormula computes memory.high, in bytes, from a request and top: the limit,
// or what stands in for one. how is the formula in words.
type highFormula func(p podPlanner, request, top int64, topName string) (high int64, how string)

// highOfLimit is the formula of 1.22 to 1.26.
func highOfLimit(p podPlanner, _, top int64, topName string) (int64, string) {
	return int64(float64(top) * p.ThrottlingFactor.Value),
		fmt.Sprintf("%s x %s %s", p.factorText(), topName, human(top))
}

// highBetweenRequestAndLimit is the formula since 1.27.
//
// The operations are in the kubelet's order and the product is not converted:
// where the compiler fuses multiplication and addition (arm64), it does so in
// the kubelet too, and the results stay the same to the last bit.
func highBetweenRequestAndLimit(p podPlanner, request, top int64, topName string) (int64, string) {
	high := int64(math.Floor(
		float64(request)+(float64(top)-float64(request))*p.ThrottlingFactor.Value)/float64(p.node.PageSize)) * p.node.PageSize
	return high, fmt.Sprintf("request %s + %s x (%s %s - request)", human(request), p.factorText(), topName, human(top))
}

func (p PodPolicy) factorText() string {
	return strconv.FormatFloat(p.ThrottlingFactor.Value, 'g', -1, 64)
}
