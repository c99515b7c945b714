package config

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func validateRules(c *MemoryQoSConfiguration) field.ErrorList {
	var errs field.ErrorList
	seen := map[string]bool{}
	for i := range c.Rules {
		r, at := &c.Rules[i], field.NewPath("rules").Index(i)
		switch why := validation.IsDNS1123Label(r.Name); {
		case r.Name == "":
			errs = append(errs, field.Required(at.Child("name"), "a rule is called by its name in logs, metrics and reasons: give a DNS label, such as batch"))
		case len(why) > 0:
			errs = append(errs, field.Invalid(at.Child("name"), r.Name, strings.Join(why, "; ")))
		case seen[r.Name]:
			errs = append(errs, field.Duplicate(at.Child("name"), r.Name))
		}
		seen[r.Name] = true
		if r.Match == nil {
			errs = append(errs, field.Required(at.Child("match"), "say which pods are meant; {} is every pod"))
		} else {
			errs = append(errs, validateMatch(r.Match, at.Child("match"))...)
		}
		errs = append(errs, validateEffects(r, c.EmulationVersion, at)...)
	}
	return errs
}

func validateEffects(r *Rule, release EmulationVersion, at *field.Path) field.ErrorList {
	errs := validateShare(r.MemoryThrottlingFactor, at.Child("memoryThrottlingFactor"), "0.9")
	if r.MemoryReservationPolicy != "" {
		errs = append(errs, validateReservationPolicy(r.MemoryReservationPolicy, release, at.Child("memoryReservationPolicy"))...)
	}
	for _, x := range []struct {
		name  string
		value Switch
	}{{"memoryHigh", r.MemoryHigh}, {"stallGuard", r.StallGuard}} {
		if x.value != "" {
			errs = append(errs, validateOneOf(x.value, at.Child(x.name), Enabled, Disabled)...)
		}
	}
	if r.Exclude && (r.MemoryThrottlingFactor != nil || r.MemoryReservationPolicy != "" || r.MemoryHigh != "" || r.StallGuard != "") {
		errs = append(errs, field.Invalid(at.Child("exclude"), r.Exclude, "nothing is done for an excluded pod: remove exclude, or every other setting of the rule"))
	}
	if r.MemoryHigh == Disabled {
		const without = "without memory.high it has no meaning: remove it, or memoryHigh"
		if r.MemoryThrottlingFactor != nil {
			errs = append(errs, field.Invalid(at.Child("memoryThrottlingFactor"), *r.MemoryThrottlingFactor, without))
		}
		if r.StallGuard == Enabled {
			errs = append(errs, field.Invalid(at.Child("stallGuard"), r.StallGuard, without))
		}
	}
	return errs
}

func validateMatch(m *Match, at *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i, namespace := range m.Namespaces {
		name := namespace
		if prefix, ok := strings.CutSuffix(namespace, "*"); ok && prefix != "" {
			name = prefix + "x"
		}
		if len(validation.IsDNS1123Label(name)) > 0 {
			errs = append(errs, field.Invalid(at.Child("namespaces").Index(i), namespace, `must be the name of a namespace, or the beginning of one and "*", such as "team-*"; for every namespace remove the list`))
		}
	}
	if m.PodSelector != nil {
		errs = append(errs, metav1validation.ValidateLabelSelector(m.PodSelector, metav1validation.LabelSelectorValidationOptions{}, at.Child("podSelector"))...)
	}
	for i, class := range m.QOSClasses {
		errs = append(errs, validateOneOf(class, at.Child("qosClasses").Index(i), corev1.PodQOSGuaranteed, corev1.PodQOSBurstable, corev1.PodQOSBestEffort)...)
	}
	for i, name := range m.PriorityClassNames {
		if why := validation.IsDNS1123Subdomain(name); len(why) > 0 {
			errs = append(errs, field.Invalid(at.Child("priorityClassNames").Index(i), name, strings.Join(why, "; ")))
		}
	}
	// An empty list could be read as any or as none.
	for _, x := range []struct {
		name  string
		empty bool
	}{
		{"namespaces", m.Namespaces != nil && len(m.Namespaces) == 0},
		{"qosClasses", m.QOSClasses != nil && len(m.QOSClasses) == 0},
		{"priorityClassNames", m.PriorityClassNames != nil && len(m.PriorityClassNames) == 0},
	} {
		if x.empty {
			errs = append(errs, field.Invalid(at.Child(x.name), []string{}, "is an empty list: remove it for any, or name at least one"))
		}
	}
	return errs
}
