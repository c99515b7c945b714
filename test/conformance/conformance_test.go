package conformance

import (
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite docs/conformance.md")

// The plan for the manifests is what the kubelets' kernels held.
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
			plan, err := r.Plan(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			c := r.Compare(plan)
			comparisons[name] = c
			for cgroup, differences := range c.Differences {
				t.Errorf("%s: %s", cgroup, strings.Join(differences, "; "))
			}
			if pods := r.Cgroups.Count("pod"); pods < 15 || c.Files < 4*pods {
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
			want := []string{"container default/done/app", "container default/init-peak/first", "container default/init-peak/second", "container default/init-running/app", "pod default/done"}
			if !slices.Equal(c.NotRunning, want) {
				t.Errorf("planned and not there: %v, want %v", c.NotRunning, want)
			}
		})
	}
	golden(t, filepath.Join(Dir(), "..", "..", "..", "docs", "conformance.md"), Table(records, comparisons))
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
		NotRunning:  []string{"pod a/b"},
		NotPlanned:  []string{"sandbox a/b"},
	}
	if diff := cmp.Diff(want, c); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}
