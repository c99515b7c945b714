package qos

import (
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"pgregory.net/rapid"

	"github.com/memqos/memqos/config"
	"github.com/memqos/memqos/memory"
	"github.com/memqos/memqos/qos/qostest"
)

// policyOf decodes what stands in a configuration file.
func policyOf(t *testing.T, node Node, text string) Policy {
	t.Helper()
	c, err := config.Decode([]byte("apiVersion: memqos.io/v1alpha1\nkind: MemoryQoSConfiguration\n" + text))
	if err != nil {
		t.Fatal(err)
	}
	return NewPolicy(c, node)
}

var node32 = Node{Allocatable: gi32, PageSize: 4096}

func TestRuleMatches(t *testing.T) {
	p := pod(corev1.PodQOSBurstable, container("c", "64Mi/128Mi"))
	p.Namespace, p.Labels, p.Spec.PriorityClassName = "team-a", map[string]string{"app": "web"}, "low"
	for _, tc := range []struct {
		match string
		want  bool
	}{
		{"{}", true},
		{"{namespaces: [team-a]}", true},
		{"{namespaces: [team-b, team-a]}", true},
		{"{namespaces: [team]}", false},
		{"{namespaces: [team-a-b]}", false},
		{"{namespaces: [team-*]}", true},
		{"{namespaces: [team-a*]}", true},
		{"{namespaces: [eam-*]}", false},
		{"{podSelector: {}}", true},
		{"{podSelector: {matchLabels: {app: web}}}", true},
		{"{podSelector: {matchLabels: {app: db}}}", false},
		{"{podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [web]}]}}", false},
		{"{podSelector: {matchExpressions: [{key: tier, operator: DoesNotExist}]}}", true},
		{"{qosClasses: [BestEffort, Burstable]}", true},
		{"{qosClasses: [Guaranteed]}", false},
		{"{priorityClassNames: [low]}", true},
		{"{priorityClassNames: [system-node-critical]}", false},
		// All that is given must apply.
		{"{namespaces: [team-a], qosClasses: [Burstable], priorityClassNames: [low], podSelector: {matchLabels: {app: web}}}", true},
		{"{namespaces: [team-a], qosClasses: [Burstable], priorityClassNames: [low], podSelector: {matchLabels: {app: db}}}", false},
		{"{namespaces: [x], qosClasses: [Burstable], priorityClassNames: [low], podSelector: {matchLabels: {app: web}}}", false},
		{"{namespaces: [team-a], qosClasses: [Guaranteed], priorityClassNames: [low]}", false},
		{"{namespaces: [team-a], qosClasses: [Burstable], priorityClassNames: [high]}", false},
	} {
		got, _ := policyOf(t, node32, "rules: [{name: r, match: "+tc.match+"}]").For(p)
		if (got.Rule == "r") != tc.want {
			t.Errorf("%s: matches: %v, want %v", tc.match, !tc.want, tc.want)
		}
	}
	// A pod that no API server has seen has the class that it would get.
	p.Status.QOSClass = ""
	if got, _ := policyOf(t, node32, "rules: [{name: r, match: {qosClasses: [Burstable]}}]").For(p); got.Rule != "r" {
		t.Error("the class of a manifest does not match")
	}
}

func TestFor(t *testing.T) {
	standard := PodPolicy{
		ThrottlingFactor: Setting[float64]{Value: 0.9}, MemoryHigh: Setting[bool]{Value: true}, Reserve: Setting[bool]{Value: true}, StallGuard: Setting[bool]{Value: true},
	}
	with := func(edit func(*PodPolicy)) PodPolicy {
		out := standard
		edit(&out)
		return out
	}
	for _, tc := range []struct {
		name        string
		config      string
		annotations map[string]string
		want        PodPolicy
	}{
		{"nothing said", "", nil, standard},
		{"no guard", "stallGuard: {enabled: false}", nil, with(func(p *PodPolicy) { p.StallGuard.Value = false })},
		{"the first that matches, and it alone", `rules:
- {name: other, match: {namespaces: [x]}, exclude: true}
- {name: first, match: {}, memoryThrottlingFactor: 0.5}
- {name: second, match: {}, memoryHigh: Disabled}`, nil,
			with(func(p *PodPolicy) { p.Rule, p.ThrottlingFactor = "first", Setting[float64]{0.5, "rule first"} })},
		{"a rule that exempts from the next", "rules: [{name: a, match: {}}, {name: b, match: {}, exclude: true}]", nil, with(func(p *PodPolicy) { p.Rule = "a" })},
		{"every effect", "emulationVersion: '1.36'\nrules: [{name: a, match: {}, memoryHigh: Disabled, memoryReservationPolicy: None, stallGuard: Disabled}]", nil, with(func(p *PodPolicy) {
			p.Rule, p.MemoryHigh, p.Reserve, p.StallGuard = "a", Setting[bool]{false, "rule a"}, Setting[bool]{false, "rule a"}, Setting[bool]{false, "rule a"}
		})},
		{"back on by rule", "emulationVersion: '1.36'\nmemoryReservationPolicy: None\nstallGuard: {enabled: false}\nrules: [{name: a, match: {}, memoryReservationPolicy: TieredReservation, stallGuard: Enabled}]", nil, with(func(p *PodPolicy) {
			p.Rule, p.Reserve, p.StallGuard = "a", Setting[bool]{true, "rule a"}, Setting[bool]{true, "rule a"}
		})},
		{"annotations over a rule", "rules: [{name: a, match: {}, memoryHigh: Disabled, stallGuard: Disabled}]", map[string]string{
			"memqos.io/memory-high": "enabled", "memqos.io/stall-guard": "enabled", "memqos.io/memory-throttling-factor": "0.7", "memqos.io/keep": "memory.min, memory.max,memory.min", "other.io/keep": "x",
		}, with(func(p *PodPolicy) {
			p.Rule, p.Keep = "a", []memory.File{memory.Min, memory.Max}
			p.MemoryHigh, p.StallGuard = Setting[bool]{true, "annotation memqos.io/memory-high"}, Setting[bool]{true, "annotation memqos.io/stall-guard"}
			p.ThrottlingFactor = Setting[float64]{0.7, "annotation memqos.io/memory-throttling-factor"}
		})},
		{"excluded by annotation", "", map[string]string{"memqos.io/exclude": "true"}, with(func(p *PodPolicy) { p.Excluded = Setting[bool]{true, "annotation memqos.io/exclude"} })},
		{"not excluded", "", map[string]string{"memqos.io/exclude": "false"}, standard},
		{"no way back in", "rules: [{name: a, match: {}, exclude: true}]", map[string]string{"memqos.io/exclude": "false"}, with(func(p *PodPolicy) { p.Rule, p.Excluded = "a", Setting[bool]{true, "rule a"} })},
	} {
		t.Run(tc.name, func(t *testing.T) {
			pd := pod("", container("c", "64Mi/128Mi"))
			pd.Annotations = tc.annotations
			got, errs := policyOf(t, node32, tc.config).For(pd)
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			if len(errs) > 0 {
				t.Errorf("errors: %v", errs)
			}
		})
	}
}

// A bad annotation is named, with what it may hold, and has no effect; the others
// of the pod have theirs.
func TestAnnotationErrors(t *testing.T) {
	for _, tc := range []struct{ name, value, want string }{
		{"memqos.io/exclude", "yes", `annotation memqos.io/exclude: "yes" is passed over: want "true" or "false"`},
		{"memqos.io/exclude", "", `annotation memqos.io/exclude: "" is passed over`},
		{"memqos.io/memory-throttling-factor", "80%", `annotation memqos.io/memory-throttling-factor: "80%" is passed over: want a number greater than 0 and at most 1`},
		{"memqos.io/memory-throttling-factor", "0", "is passed over"},
		{"memqos.io/memory-throttling-factor", "1.1", "is passed over"},
		{"memqos.io/memory-throttling-factor", "NaN", "is passed over"},
		{"memqos.io/memory-high", "off", `want "enabled" or "disabled"`},
		{"memqos.io/stall-guard", "true", `want "enabled" or "disabled"`},
		{"memqos.io/keep", "", "is passed over: want files out of memory.min"},
		{"memqos.io/keep", "memory.high,cpu.max", "is passed over"},
		{"memqos.io/keep", "memory.high,", "is passed over"},
		{"memqos.io/memory-hihg", "disabled", "want one of the annotations memqos.io/exclude, memqos.io/keep,"},
		{"memqos.io/keep", strings.Repeat("é", 1000) + "\n", `"` + strings.Repeat("é", 32) + `..." is passed over`},
	} {
		pd := pod("", container("c", "64Mi/128Mi"))
		pd.Annotations = map[string]string{tc.name: tc.value, "memqos.io/zzz": ""}
		p := policyOf(t, node32, "")
		got, errs := p.For(pd)
		if len(errs) != 2 || errs[0].Annotation != tc.name || errs[0].Value != tc.value || !strings.Contains(errs[0].Error(), tc.want) {
			t.Errorf("%s: %q: got %v, want first an error with %q", tc.name, tc.value, errs, tc.want)
		}
		if diff := cmp.Diff(p.standard, got); diff != "" {
			t.Errorf("%s: %q has an effect (-standard +got):\n%s", tc.name, tc.value, diff)
		}
	}
}

// What a rule or annotation decides shows in each value and in its reason.
func TestPlanOfPodPolicy(t *testing.T) {
	for _, tc := range []struct {
		name           string
		config         string
		annotations    map[string]string
		pod, container string // values
		file           memory.File
		reason         string // of the container's file
	}{
		{"rule factor", "rules: [{name: a, match: {}, memoryThrottlingFactor: 0.5}]", nil,
			"memory.min=67108864 memory.max=134217728", "memory.min=67108864 memory.high=100663296 memory.max=134217728",
			memory.High, "request 64Mi + 0.5 x (limit 128Mi - request) (rule a)"},
		{"rule memory.high", "rules: [{name: a, match: {}, memoryHigh: Disabled}]", nil,
			"memory.min=67108864 memory.max=134217728", "memory.min=67108864 memory.high=max memory.max=134217728",
			memory.High, "turned off by rule a"},
		{"rule policy", "emulationVersion: '1.37'\nrules: [{name: a, match: {}, memoryReservationPolicy: None}]", nil,
			"memory.min=0 memory.low=0 memory.high=max memory.max=134217728", "memory.min=0 memory.low=0 memory.high=127504384 memory.max=134217728",
			memory.Low, "memoryReservationPolicy is None (rule a)"},
		{"rule excludes", "rules: [{name: a, match: {}, exclude: true}]", nil, "", "", memory.Max, "left alone: excluded by rule a"},
		{"annotation factor", "", map[string]string{AnnotationFactor: "0.5"},
			"memory.min=67108864 memory.max=134217728", "memory.min=67108864 memory.high=100663296 memory.max=134217728",
			memory.High, "request 64Mi + 0.5 x (limit 128Mi - request) (annotation memqos.io/memory-throttling-factor)"},
		{"annotation memory.high", "", map[string]string{AnnotationHigh: "disabled"},
			"memory.min=67108864 memory.max=134217728", "memory.min=67108864 memory.high=max memory.max=134217728",
			memory.High, "turned off by annotation memqos.io/memory-high"},
		{"annotation excludes", "", map[string]string{AnnotationExclude: "true"}, "", "", memory.Min, "left alone: excluded by annotation memqos.io/exclude"},
		{"annotation keeps", "", map[string]string{AnnotationKeep: "memory.high,memory.min"},
			"memory.max=134217728", "memory.max=134217728", memory.High, "left alone: annotation memqos.io/keep"},
		{"file that is not managed is kept anyway", "", map[string]string{AnnotationKeep: "memory.low"},
			"memory.min=67108864 memory.max=134217728", "memory.min=67108864 memory.high=127504384 memory.max=134217728", memory.Low, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			pd := pod("", container("c", "64Mi/128Mi"))
			pd.Annotations = tc.annotations
			p := policyOf(t, node32, tc.config)
			ofPod, ofContainer := p.Pod(pd), p.Containers(pd)[0]
			if got := ofPod.Values.String(); got != tc.pod {
				t.Errorf("pod: got %q, want %q", got, tc.pod)
			}
			if got := ofContainer.Values.String(); got != tc.container {
				t.Errorf("container: got %q, want %q", got, tc.container)
			}
			if got := ofContainer.Reason[tc.file]; got != tc.reason {
				t.Errorf("reason: got %q, want %q", got, tc.reason)
			}
			if ofPod.Values == nil || ofContainer.Values == nil {
				t.Error("values are nil, which is a cgroup that is not known")
			}
		})
	}
}

// memory.high of a pod, which 1.37 has, follows the same settings.
func TestPodHighOfPodPolicy(t *testing.T) {
	pd := withPodLevel(pod("", container("c", "-/-")), "1", "1", "512Mi", "1Gi")
	for text, want := range map[string]string{
		"": "memory.min=0 memory.low=536870912 memory.high=1020051456 memory.max=1073741824",
		"rules: [{name: a, match: {}, memoryThrottlingFactor: 0.5}]": "memory.min=0 memory.low=536870912 memory.high=805306368 memory.max=1073741824",
		"rules: [{name: a, match: {}, memoryHigh: Disabled}]":        "memory.min=0 memory.low=536870912 memory.high=max memory.max=1073741824",
	} {
		if got := policyOf(t, node32, "emulationVersion: '1.37'\n"+text).Pod(pd).Values.String(); got != want {
			t.Errorf("%s: got %s, want %s", text, got, want)
		}
	}
}

func TestSumsOfPodPolicy(t *testing.T) {
	pods := []corev1.Pod{
		*pod("", full("c", "1", "1", "128Mi", "128Mi")), *pod("", container("c", "64Mi/128Mi")), *pod("", container("c", "32Mi/-")),
	}
	pods[1].Namespace = "batch"
	for _, tc := range []struct {
		config      string
		annotations map[string]string // of the last pod
		want        []string
		reason      string // of kubepods
	}{
		{"", nil, []string{"memory.min=234881024", "memory.min=100663296"}, "sum of the requests of 1 Guaranteed and 2 Burstable pods"},
		{"rules: [{name: a, match: {namespaces: [batch]}, exclude: true}]", nil, []string{"memory.min=167772160", "memory.min=33554432"}, "sum of the requests of 1 Guaranteed and 1 Burstable pods; 1 excluded"},
		{"", map[string]string{AnnotationExclude: "true"}, []string{"memory.min=201326592", "memory.min=67108864"}, "sum of the requests of 1 Guaranteed and 1 Burstable pods; 1 excluded"},
		// What is kept needs the share of its parents.
		{"", map[string]string{AnnotationKeep: "memory.min"}, []string{"memory.min=234881024", "memory.min=100663296"}, "sum of the requests of 1 Guaranteed and 2 Burstable pods"},
		{"rules: [{name: a, match: {}, memoryHigh: Disabled}]", nil, []string{"memory.min=234881024", "memory.min=100663296"}, "sum of the requests of 1 Guaranteed and 2 Burstable pods"},
		{"emulationVersion: '1.37'\nrules: [{name: a, match: {namespaces: [batch]}, memoryReservationPolicy: None}]", nil,
			[]string{"memory.min=167772160 memory.low=33554432", "memory.min=0 memory.low=33554432"}, "sum of the requests of 1 Guaranteed and 1 Burstable pods; 1 with memoryReservationPolicy None"},
		{"emulationVersion: '1.37'\nmemoryReservationPolicy: None\nrules: [{name: a, match: {namespaces: [batch]}, memoryReservationPolicy: TieredReservation}]", nil,
			[]string{"memory.min=67108864 memory.low=67108864", "memory.min=0 memory.low=67108864"}, "sum of the requests of 0 Guaranteed and 1 Burstable pods; 2 with memoryReservationPolicy None"},
		{"emulationVersion: '1.37'\nmemoryReservationPolicy: None", nil, []string{"memory.min=0 memory.low=0", "memory.min=0 memory.low=0"}, "memoryReservationPolicy is None"},
	} {
		pods[2].Annotations = tc.annotations
		got := policyOf(t, node32, tc.config).Node(pods)
		if diff := cmp.Diff(tc.want, values(got)); diff != "" {
			t.Errorf("%s %v (-want +got):\n%s", tc.config, tc.annotations, diff)
		}
		if got[0].Reason[memory.Min] != tc.reason {
			t.Errorf("%s %v: got reason %q, want %q", tc.config, tc.annotations, got[0].Reason[memory.Min], tc.reason)
		}
	}
}

func TestRails(t *testing.T) {
	pods := []corev1.Pod{*pod("", full("c", "1", "1", "1Gi", "1Gi")), *pod("", container("c", "3Gi/4Gi"))}
	for _, tc := range []struct {
		config   string
		capacity string
		want     []string
		reason   string // of kubepods
	}{
		{"", "0", []string{"memory.min=4294967296", "memory.min=3221225472"}, "sum of the requests of 1 Guaranteed and 1 Burstable pods"},
		{"", "8Gi", []string{"memory.min=4294967296", "memory.min=3221225472"}, "sum of the requests of 1 Guaranteed and 1 Burstable pods"},
		{"", "4196Mi", []string{"memory.min=4294967296", "memory.min=3221225472"}, "sum of the requests of 1 Guaranteed and 1 Burstable pods"},
		{"", "4Gi", []string{"memory.min=4190109696", "memory.min=3221225472"}, "node capacity 4Gi - rails.systemReserve 100Mi; without this rail 4Gi, the sum of the requests of 1 Guaranteed and 1 Burstable pods"},
		{"rails: {systemReserve: 0}", "2Gi", []string{"memory.min=4294967296", "memory.min=3221225472"}, "sum of the requests of 1 Guaranteed and 1 Burstable pods"},
		{"rails: {systemReserve: 4Gi}", "2Gi", []string{"memory.min=0", "memory.min=0"}, "node capacity 2Gi - rails.systemReserve 4Gi; without this rail 4Gi, the sum of the requests of 1 Guaranteed and 1 Burstable pods"},
		{"emulationVersion: '1.37'\nrails: {systemReserve: 1Gi}", "3Gi", []string{"memory.min=2147483648 memory.low=2147483648", "memory.min=0 memory.low=2147483648"}, "node capacity 3Gi - rails.systemReserve 1Gi; without this rail 4Gi, the sum of the requests of 1 Guaranteed and 1 Burstable pods"},
	} {
		capacity := resource.MustParse(tc.capacity)
		got := policyOf(t, Node{PageSize: 4096, Capacity: capacity.Value()}, tc.config).Node(pods)
		if diff := cmp.Diff(tc.want, values(got)); diff != "" {
			t.Errorf("%s capacity %s (-want +got):\n%s", tc.config, tc.capacity, diff)
		}
		if bound := slices.Equal(got[0].Rails, []Rail{SystemReserve}); bound != strings.HasPrefix(tc.reason, "node capacity") {
			t.Errorf("%s capacity %s: rails %v", tc.config, tc.capacity, got[0].Rails)
		}
		if got[0].Reason[memory.Min] != tc.reason {
			t.Errorf("%s capacity %s: got reason %q, want %q", tc.config, tc.capacity, got[0].Reason[memory.Min], tc.reason)
		}
	}
}

func TestReclaimMargin(t *testing.T) {
	for _, tc := range []struct{ margin, container, pod, of string }{
		{"0", "100Mi/100Mi", "memory.min=104857600 memory.max=104857600", "memory.min=104857600 memory.high=max memory.max=104857600"},
		{"0.05", "100Mi/100Mi", "memory.min=104857600 memory.max=104857600", "memory.min=99614720 memory.high=max memory.max=104857600"},
		{"0.05", "50Mi/100Mi", "memory.min=52428800 memory.max=104857600", "memory.min=52428800 memory.high=99614720 memory.max=104857600"},
		{"0.01", "100Mi/100Mi", "memory.min=104857600 memory.max=104857600", "memory.min=102760448 memory.high=max memory.max=104857600"},
		{"0.01", "1Mi/1Mi", "memory.min=1048576 memory.max=1048576", "memory.min=0 memory.high=max memory.max=1048576"},
		{"0.05", "100Mi/-", "memory.min=104857600", "memory.min=104857600 memory.high=30934249472"},
	} {
		p, pd := policyOf(t, node32, "rails: {reclaimMargin: "+tc.margin+"}"), pod("", container("c", tc.container))
		if got := p.Pod(pd).Values.String(); got != tc.pod {
			t.Errorf("%s %s: pod: got %s, want %s", tc.margin, tc.container, got, tc.pod)
		}
		c := p.Containers(pd)[0]
		if got := c.Values.String(); got != tc.of {
			t.Errorf("%s %s: container: got %s, want %s", tc.margin, tc.container, got, tc.of)
		}
		if got, want := strings.Contains(c.Reason[memory.Min], "of memory.max, by rails.reclaimMargin"), c.Values[memory.Min] < p.Pod(pd).Values[memory.Min]; got != want {
			t.Errorf("%s %s: reason %q", tc.margin, tc.container, c.Reason[memory.Min])
		}
	}
}

// Rules that match nothing of a node's pods leave no trace in its plan.
func TestRulesOfOthersChangeNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pods := defaulted(qostest.Pods().Draw(t, "pods"))
		plain := anyPolicy(t)
		ruled := plain
		c := &config.MemoryQoSConfiguration{Rules: []config.Rule{{Name: "a", Match: &config.Match{Namespaces: []string{"nobodys"}}, Exclude: true}}}
		ruled.rules = append(rulesOf(c), plain.rules...)
		if diff := cmp.Diff(plain.PlanFor(pods), ruled.PlanFor(pods)); diff != "" {
			t.Errorf("-without +with:\n%s", diff)
		}
	})
}

// Whatever an annotation holds, the factor stays in its range and the files are
// files; what is not understood has no effect.
func FuzzAnnotations(f *testing.F) {
	f.Add("memory-throttling-factor", "0.5")
	f.Add("keep", "memory.high, memory.low")
	f.Add("exclude", "true")
	f.Add("memory-high", "disabled")
	f.Fuzz(func(t *testing.T, name, value string) {
		standard := PodPolicy{ThrottlingFactor: Setting[float64]{Value: 0.9}}
		got := standard
		errs := annotate(map[string]string{AnnotationPrefix + name: value}, &got)
		if v := got.ThrottlingFactor.Value; !(v > 0 && v <= 1) || math.IsNaN(v) {
			t.Errorf("factor %v", v)
		}
		if len(got.Keep) > len(memory.Files) {
			t.Errorf("keeps %v", got.Keep)
		}
		if len(errs) > 0 {
			if diff := cmp.Diff(standard, got); diff != "" {
				t.Errorf("%v, and yet (-before +after):\n%s", errs, diff)
			}
			if len(errs[0].Error()) > 1000 {
				t.Errorf("an error of %d bytes", len(errs[0].Error()))
			}
		}
	})
}
