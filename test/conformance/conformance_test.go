package conformance

import (
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite docs/conformance.md")

// The plan for the pods is what the kubelets' kernels held.
func TestRecords(t *testing.T) {
	records, err := Records()
	if err != nil {
		t.Fatal(err)
	}
	if len(records) < 2 {
		t.Fatalf("%d records: make record makes them", len(records))
	}
	comparisons := map[string]Comparison{}
	for name, r := range records {
		t.Run(name, func(t *testing.T) {
			c := compare(t, r)
			if pods := r.Cgroups.Count("pod"); pods < MinPods || c.Files < 4*pods {
				t.Errorf("only %d pods and %d values", pods, c.Files)
			}
			for _, cgroup := range c.NotPlanned {
				if !strings.HasPrefix(cgroup, "sandbox ") && !strings.HasPrefix(cgroup, "conmon ") && cgroup != "besteffort" {
					t.Errorf("%s is not in the plan", cgroup)
				}
				if diff := cmp.Diff(map[string]string{"memory.min": "0", "memory.low": "0", "memory.high": "max", "memory.max": "max"}, r.Cgroups[cgroup]); diff != "" {
					t.Errorf("%s is not left at the defaults (-defaults +kubelet):\n%s", cgroup, diff)
				}
			}
			// Containers that had ended or not begun, and the pod that is done.
			notRunning := slices.DeleteFunc(slices.Clone(c.NotRunning), randomInit.MatchString)
			want := []string{"container default/done/app", "container default/init-peak/first", "container default/init-peak/second", "container default/init-running/app", "pod default/done"}
			if diff := cmp.Diff(want, notRunning); diff != "" {
				t.Errorf("planned and not there (-want +got):\n%s", diff)
			}
			for i, step := range r.Resizes {
				resized := compare(t, r.Resized(i))
				if pods := r.Resized(i).Cgroups.Count("pod"); pods < 5 || resized.Files < 4*pods {
					t.Errorf("%s: only %d pods and %d values", step.Manifest, pods, resized.Files)
				}
				c.Add(resized)
			}
			comparisons[name] = c
		})
	}
	golden(t, filepath.Join(Dir(), "..", "..", "..", "docs", "conformance.md"), Table(records, comparisons))
}

var randomInit = regexp.MustCompile(`^container random/[^/]*/init$`)

func compare(t *testing.T, r Record) Comparison {
	t.Helper()
	plan, err := r.Plan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c := r.Compare(plan)
	for cgroup, differences := range c.Differences {
		t.Errorf("%s: %s", cgroup, strings.Join(differences, "; "))
	}
	return c
}

// Every reason is in the document on the architecture.
func TestDeviationsAreDocumented(t *testing.T) {
	doc, err := os.ReadFile(filepath.Join(Dir(), "..", "..", "..", "docs", "architecture.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(doc), "## Deviations")
	for _, d := range deviations {
		if !strings.Contains(table, d.why) {
			t.Errorf("the deviations in docs/architecture.md have no %q", d.why)
		}
	}
}

func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s is not up to date (make update); -want +got:\n%s", file, diff)
	}
}

// A difference is seen: the comparison can fail.
func TestCompareFinds(t *testing.T) {
	r := Record{Cgroups: Snapshot{
		"kubepods":                     {"memory.min": "1"},
		"container a/b/c":              {"memory.min": "0", "memory.high": "max"},
		"container a/b/c" + CrunSuffix: {"memory.min": "7", "memory.high": "max"},
		"sandbox a/b":                  {"memory.min": "0"},
	}}
	c := r.Compare(Snapshot{"kubepods": {"memory.min": "1"}, "container a/b/c": {"memory.min": "0"}, "pod a/b": {}})
	want := Comparison{
		Files:       3,
		Differences: map[string][]string{"container a/b/c" + CrunSuffix: {"memory.min is planned as 0, the kubelet has 7"}},
		Deviations:  map[string][]string{},
		NotRunning:  []string{"pod a/b"},
		NotPlanned:  []string{"sandbox a/b"},
	}
	if diff := cmp.Diff(want, c); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// What deviates with a reason is told from what differs, and only after a resize.
func TestCompareDeviations(t *testing.T) {
	held := Snapshot{"pod default/resize-requests": {"memory.low": "1", "memory.min": "1"}}
	planned := Snapshot{"pod default/resize-requests": {"memory.low": "2", "memory.min": "2"}}
	const low, minimum = "memory.low is planned as 2, the kubelet has 1", "memory.min is planned as 2, the kubelet has 1"
	const pod, why = "pod default/resize-requests", " (in-place resize that changes requests alone)"
	r := Record{Manifests: []string{FirstResize}, Cgroups: held, Resizes: []Resize{{Manifest: "resize-1.yaml", Cgroups: held}}}
	for _, test := range []struct {
		record   Record
		want     Comparison
		expected Snapshot
	}{
		{r, Comparison{Files: 2, Differences: map[string][]string{pod: {low, minimum}}, Deviations: map[string][]string{}}, held},
		{
			r.Resized(0),
			Comparison{Files: 2, Differences: map[string][]string{pod: {minimum}}, Deviations: map[string][]string{pod: {low + why}}},
			Snapshot{pod: {"memory.low": "2", "memory.min": "1"}},
		},
	} {
		if diff := cmp.Diff(test.want, test.record.Compare(planned)); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
		if diff := cmp.Diff(test.expected, test.record.Expected(planned)); diff != "" {
			t.Errorf("expected, -want +got:\n%s", diff)
		}
	}
}
