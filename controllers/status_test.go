package controllers

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"github.com/memqos/memqos/cgroup"
	"github.com/memqos/memqos/cgroup/cgrouptest"
	"github.com/memqos/memqos/guard"
	"github.com/memqos/memqos/memory"
	"github.com/memqos/memqos/metrics"
	"github.com/memqos/memqos/status"
)

// container is what a view tells of the pod's container app.
func (w *world) container(v view) status.Cgroup {
	w.Helper()
	v.site = w.surveyor.site.Load()
	var pods corev1.PodList
	if err := w.pods.List(w.Context(), &pods); err != nil {
		w.Fatal(err)
	}
	st, err := v.status("n", v.allocatable, pods.Items, nil)
	if err != nil {
		w.Fatal(err)
	}
	for _, c := range st.Cgroups {
		if c.Container == "app" {
			return c
		}
	}
	w.Fatalf("the status has no app: %+v", st.Cgroups)
	return status.Cgroup{}
}

// What is said of a container's memory.high, by what has happened to it.
func TestStatusExplains(t *testing.T) {
	const planned, raised = 127504384, 130 << 20
	plan := "request 64Mi + 0.9 x (limit 128Mi - request)"
	for _, tt := range []struct {
		name    string
		holds   string // memory.high
		usage   string
		latch   guard.Latch
		kubelet bool // does it itself
		verdict status.Verdict
		wanted  string
		reason  string
		relaxed bool
	}{
		{"as planned", "127504384", "4096", guard.Latch{}, false, status.Fulfilled, "127504384", plan, false},
		{"somebody else's value", "4096", "4096", guard.Latch{}, false, status.Drifted, "127504384", plan, false},
		{"on its way down", "max", "130000000", guard.Latch{}, false, status.Pending, "127504384", plan, false},
		{"raised by the guard", "136314880", "130000000", guard.Latch{High: raised}, false, status.Relaxed, "136314880", "raised by the stall guard; 124516Ki: " + plan, true},
		{"raised, and overwritten", "4096", "4096", guard.Latch{High: raised}, false, status.Drifted, "136314880", "raised by the stall guard; 124516Ki: " + plan, true},
		{"the plan has overtaken the guard", "127504384", "4096", guard.Latch{High: 1 << 20}, false, status.Fulfilled, "127504384", plan, false},
		{"left to the kubelet", "4096", "4096", guard.Latch{}, true, status.Fulfilled, "", "left to the kubelet's own MemoryQoS", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, podTree, burstable("p", "64Mi", "128Mi"))
			w.mustReconcilePod("p")
			at := filepath.Join(w.dir, podDir, idApp)
			cgrouptest.Write(t, filepath.Join(at, "memory.high"), tt.holds)
			cgrouptest.Write(t, filepath.Join(at, "memory.current"), tt.usage)
			cgrouptest.Write(t, filepath.Join(at, "memory.events"), "low 1\nhigh 7\nmax 2\noom 3\noom_kill 4\noom_group_kill 5")
			cgrouptest.Write(t, filepath.Join(at, "memory.pressure"), "some avg10=1.50 avg60=0.00 avg300=0.00 total=2500000\nfull avg10=0.25 avg60=0.00 avg300=0.00 total=1000000")
			v := view{relaxed: map[uint64]guard.Latch{w.inode(): tt.latch}}
			if tt.kubelet {
				v.manages = func(file memory.File) bool { return file == memory.High }
			}
			c := w.container(v)
			wanted, is := c.Wanted[memory.High]
			if got := wanted.String(); is && got != tt.wanted || !is && tt.wanted != "" {
				t.Errorf("wanted %q (%v), want %q", got, is, tt.wanted)
			}
			if c.Verdict != tt.verdict || c.Reason[memory.High] != tt.reason || c.Actual[memory.High].String() != tt.holds {
				t.Errorf("%s because of %q, holds %s; want %s because of %q, %s", c.Verdict, c.Reason[memory.High], c.Actual[memory.High], tt.verdict, tt.reason, tt.holds)
			}
			if (c.Relaxed != nil) != tt.relaxed || tt.relaxed && c.Relaxed.Planned != planned {
				t.Errorf("relaxed: %+v, want %v", c.Relaxed, tt.relaxed)
			}
			events := map[string]uint64{"low": 1, "high": 7, "max": 2, "oom": 3, "oom_kill": 4, "oom_group_kill": 5}
			if diff := cmp.Diff(events, c.Events); diff != "" {
				t.Errorf("events (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(&status.Pressure{SomeAvg10: 1.5, SomeTotalUsec: 2500000, FullAvg10: 0.25, FullTotalUsec: 1000000}, c.Pressure); diff != "" {
				t.Errorf("pressure (-want +got):\n%s", diff)
			}
		})
	}
}

// A pod that claims a cgroup that cannot be has a row of its own, and takes nothing
// from the others.
func TestStatusOfAPodThatClaims(t *testing.T) {
	claims := burstable("claims", "1Mi", "2Mi")
	claims.UID = "uid-2"
	claims.Annotations = map[string]string{cgroup.AnnotationConfigMirror: "x", cgroup.AnnotationConfigHash: "../../x"}
	w := newWorld(t, podTree, burstable("p", "64Mi", "128Mi"), claims)
	w.mustReconcilePod("p")
	if c := w.container(view{}); c.Verdict != status.Fulfilled || c.Pod != "p" {
		t.Errorf("app of p: %+v", c)
	}
	var pods corev1.PodList
	if err := w.pods.List(t.Context(), &pods); err != nil {
		t.Fatal(err)
	}
	st, err := view{site: w.surveyor.site.Load()}.status("n", 0, pods.Items, nil)
	if err != nil {
		t.Fatal(err)
	}
	var rows []string
	for _, c := range st.Cgroups {
		if c.Pod == "claims" {
			rows = append(rows, fmt.Sprintf("%s %s %q %d wanted", c.Level, c.Verdict, c.Cgroup, len(c.Wanted)))
		}
	}
	if diff := cmp.Diff([]string{`pod Unknown "" 0 wanted`}, rows); diff != "" {
		t.Errorf("rows (-want +got):\n%s", diff)
	}
}

// The metrics of containers are those of the status: sandboxes, unknown cgroups and
// containers without a cgroup are left out.
func TestContainersOfAStatus(t *testing.T) {
	pending := burstable("pending", "1Mi", "2Mi")
	pending.UID = "uid-2"
	w := newWorld(t, podTree+"\nkubepods/besteffort/podorphan", burstable("p", "64Mi", "128Mi"), pending)
	w.mustReconcilePod("p")
	cgrouptest.Write(t, filepath.Join(w.dir, podDir, idApp, "memory.current"), "4096")
	var pods corev1.PodList
	if err := w.pods.List(t.Context(), &pods); err != nil {
		t.Fatal(err)
	}
	st, err := view{site: w.surveyor.site.Load()}.status("n", 0, pods.Items, nil)
	if err != nil {
		t.Fatal(err)
	}
	got := containersOf(st)
	want := []metrics.Container{{
		Namespace: "default", Pod: "p", Name: "app", Usage: 4096,
		Wanted: memory.Values{memory.Min: 64 << 20, memory.High: 127504384, memory.Max: 128 << 20},
		Actual: memory.Values{memory.Min: 64 << 20, memory.Low: 0, memory.High: 127504384, memory.Max: 128 << 20},
		Events: map[string]uint64{"low": 0, "high": 0, "max": 0, "oom": 0, "oom_kill": 0, "oom_group_kill": 0},
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Those who scrape at about the same time cost one read.
func TestScrapesShareARead(t *testing.T) {
	reads := 0
	s := &scrapes{read: func(context.Context) []metrics.Container { reads++; return []metrics.Container{{Name: "a"}} }}
	for range 100 {
		if got := s.containers(); len(got) != 1 {
			t.Fatalf("%d containers", len(got))
		}
	}
	if reads != 1 {
		t.Errorf("%d reads", reads)
	}
	s.at = time.Now().Add(-2 * scrapeAge)
	if s.containers(); reads != 2 {
		t.Errorf("%d reads, want another for an old answer", reads)
	}
}

// The status of a machine without cgroups says what it is, and is not null where lists are.
func TestNewStatus(t *testing.T) {
	st := newStatus("n", nil)
	if st.APIVersion != status.APIVersion || st.Kind != status.Kind || st.Node != "n" || st.Cgroups == nil || st.Machine.Kernel == "" || st.Machine.CapacityBytes == 0 || st.Machine.PageSize == 0 {
		t.Errorf("%+v", st)
	}
	if strings.ContainsRune(st.Machine.Kernel, 0) {
		t.Errorf("kernel %q", st.Machine.Kernel)
	}
}
