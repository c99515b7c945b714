package qos

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/memqos/memqos/memory"
)

// AnnotationPrefix begins the name of every annotation that is memqos's.
const AnnotationPrefix = "memqos.io/"

// The annotations of a pod. They are for whoever may write the pod, and go before
// the rules of the configuration, which are the operator's: they can only take
// away from what memqos does to the pod, or set how it is throttled. Memory that
// is protected at the cost of others cannot be had by one.
const (
	// AnnotationExclude leaves the pod alone: "true" or "false". No file of the pod
	// and its containers is written, and the sums of kubepods and of the Burstable
	// class go without it. "false" does not bring back a pod that a rule excludes.
	AnnotationExclude = AnnotationPrefix + "exclude"

	// AnnotationFactor is the throttling factor of the pod's memory.high: greater
	// than 0 and at most 1, such as "0.8".
	AnnotationFactor = AnnotationPrefix + "memory-throttling-factor"

	// AnnotationHigh is whether the pod is throttled: "disabled" makes memory.high
	// max, "enabled" undoes a rule's memoryHigh: Disabled.
	AnnotationHigh = AnnotationPrefix + "memory-high"

	// AnnotationStallGuard is whether the stall guard may raise the pod's
	// memory.high: "enabled" or "disabled".
	AnnotationStallGuard = AnnotationPrefix + "stall-guard"

	// AnnotationKeep names files that are left alone in the cgroups of the pod and
	// its containers, separated by commas: "memory.high,memory.min". What somebody
	// writes into them stays. The sums of kubepods and of the Burstable class still
	// count the pod's request, without which a memory.min or memory.low of its own
	// would protect nothing.
	AnnotationKeep = AnnotationPrefix + "keep"
)

// AnnotationError is an annotation that is passed over: the pod is treated as if
// it did not have it.
type AnnotationError struct {
	Annotation string // its name
	Value      string // what it holds
	Want       string // what it may hold
}

// maxShown bounds how much of a name or value an error shows, in bytes: whoever
// writes the pod chooses them.
const maxShown = 64

func (e *AnnotationError) Error() string {
	return fmt.Sprintf("annotation %s: %s is passed over: want %s", shown(e.Annotation), strconv.Quote(shown(e.Value)), e.Want)
}

func shown(s string) string {
	if len(s) > maxShown {
		return strings.ToValidUTF8(s[:maxShown], "") + "..."
	}
	return s
}

// annotation is how one annotation is read into what applies to a pod. It
// returns false for a value that it cannot take, which want describes.
type annotation struct {
	want string
	read func(value string, to *PodPolicy) bool
}

var annotations = map[string]annotation{
	AnnotationExclude: {`"true" or "false"`, func(value string, to *PodPolicy) bool {
		if value == "true" && !to.Excluded.Value {
			to.Excluded = Setting[bool]{true, "annotation " + AnnotationExclude}
		}
		return value == "true" || value == "false"
	}},
	AnnotationFactor: {`a number greater than 0 and at most 1, such as "0.8"`, func(value string, to *PodPolicy) bool {
		f, err := strconv.ParseFloat(value, 64)
		if err != nil || !(f > 0 && f <= 1) { // also refuses NaN
			return false
		}
		to.ThrottlingFactor = Setting[float64]{f, "annotation " + AnnotationFactor}
		return true
	}},
	AnnotationHigh:       {onOrOff, readSwitch(AnnotationHigh, func(to *PodPolicy) *Setting[bool] { return &to.MemoryHigh })},
	AnnotationStallGuard: {onOrOff, readSwitch(AnnotationStallGuard, func(to *PodPolicy) *Setting[bool] { return &to.StallGuard })},
	AnnotationKeep: {`files out of memory.min, memory.low, memory.high and memory.max, separated by commas`, func(value string, to *PodPolicy) bool {
		var keep []memory.File
		for name := range strings.SplitSeq(value, ",") {
			file := memory.File(strings.TrimSpace(name))
			if !slices.Contains(memory.Files, file) {
				return false
			}
			if !slices.Contains(keep, file) {
				keep = append(keep, file)
			}
		}
		to.Keep = keep
		return true
	}},
}

const onOrOff = `"enabled" or "disabled"`

func readSwitch(name string, of func(*PodPolicy) *Setting[bool]) func(string, *PodPolicy) bool {
	return func(value string, to *PodPolicy) bool {
		if value != "enabled" && value != "disabled" {
			return false
		}
		*of(to) = Setting[bool]{value == "enabled", "annotation " + name}
		return true
	}
}

// annotate reads a pod's annotations into what applies to it, and returns those
// that it cannot read, by name.
func annotate(all map[string]string, to *PodPolicy) []*AnnotationError {
	var errs []*AnnotationError
	for name, value := range all {
		if !strings.HasPrefix(name, AnnotationPrefix) {
			continue
		}
		if a, known := annotations[name]; !known {
			errs = append(errs, &AnnotationError{name, value, "one of the annotations " + strings.Join(slices.Sorted(maps.Keys(annotations)), ", ")})
		} else if !a.read(value, to) {
			errs = append(errs, &AnnotationError{name, value, a.want})
		}
	}
	slices.SortFunc(errs, func(a, b *AnnotationError) int { return strings.Compare(a.Annotation, b.Annotation) })
	return errs
}
