package qos

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/memqos/memqos/config"
	"github.com/memqos/memqos/memory"
)

// Setting is a value and who says so: "rule NAME", "annotation NAME", or empty
// for the configuration as a whole.
type Setting[T any] struct {
	Value T
	By    string
}

// PodPolicy is what applies to one pod: the configuration, over it the first
// rule that matches, and over that the pod's annotations.
type PodPolicy struct {
	// Rule is the name of the rule that matched, empty if none did.
	Rule string
	// Excluded pods are left alone. The other fields have no meaning then.
	Excluded Setting[bool]
	// ThrottlingFactor is the factor in the formula of memory.high, in (0, 1].
	ThrottlingFactor Setting[float64]
	// MemoryHigh: the pod is throttled. Otherwise its memory.high is max.
	MemoryHigh Setting[bool]
	// Reserve: the pod's requests are protected. Only from 1.36 can they not be.
	Reserve Setting[bool]
	// StallGuard: a memory.high at which the pod stalls may be raised.
	StallGuard Setting[bool]
	// Keep are files that are left alone.
	Keep []memory.File
}

// For returns what applies to a pod, and which of its annotations are passed
// over because they say nothing that can be understood: a bad one never fails a
// pod.
func (p Policy) For(pod *corev1.Pod) (PodPolicy, []*AnnotationError) {
	out := p.standard
	for i := range p.rules {
		if r := &p.rules[i]; r.matches(pod) {
			r.lay(&out)
			break
		}
	}
	errs := annotate(pod.Annotations, &out)
	return out, errs
}

// rule is a rule of the configuration, ready to be matched.
type rule struct {
	*config.Rule
	selector labels.Selector
}

func rulesOf(c *config.MemoryQoSConfiguration) []rule {
	var rules []rule
	for i := range c.Rules {
		r := rule{&c.Rules[i], labels.Everything()}
		if s := r.Match.PodSelector; s != nil {
			var err error
			if r.selector, err = metav1.LabelSelectorAsSelector(s); err != nil {
				r.selector = labels.Nothing() // cannot be: the configuration is valid
			}
		}
		rules = append(rules, r)
	}
	return rules
}

func (r *rule) matches(pod *corev1.Pod) bool {
	m := r.Match
	return (len(m.Namespaces) == 0 || slices.ContainsFunc(m.Namespaces, func(pattern string) bool { return matchesName(pattern, pod.Namespace) })) &&
		(len(m.QOSClasses) == 0 || slices.Contains(m.QOSClasses, Class(pod))) &&
		(len(m.PriorityClassNames) == 0 || slices.Contains(m.PriorityClassNames, pod.Spec.PriorityClassName)) &&
		r.selector.Matches(labels.Set(pod.Labels))
}

func matchesName(pattern, name string) bool {
	if prefix, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(name, prefix)
	}
	return name == pattern
}

// lay puts what the rule says over what applies without it.
func (r *rule) lay(to *PodPolicy) {
	by := "rule " + r.Name
	to.Rule = r.Name
	if r.Exclude {
		to.Excluded = Setting[bool]{true, by}
	}
	if r.MemoryThrottlingFactor != nil {
		to.ThrottlingFactor = Setting[float64]{*r.MemoryThrottlingFactor, by}
	}
	if r.MemoryReservationPolicy != "" {
		to.Reserve = Setting[bool]{r.MemoryReservationPolicy != config.NoReservation, by}
	}
	if r.MemoryHigh != "" {
		to.MemoryHigh = Setting[bool]{r.MemoryHigh == config.Enabled, by}
	}
	if r.StallGuard != "" {
		to.StallGuard = Setting[bool]{r.StallGuard == config.Enabled, by}
	}
}
