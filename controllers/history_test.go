package controllers

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/memqos/memqos/cgroup"
	"github.com/memqos/memqos/cgroup/cgrouptest"
	"github.com/memqos/memqos/guard"
	"github.com/memqos/memqos/memory"
	"github.com/memqos/memqos/metrics"
	"github.com/memqos/memqos/oom"
	"github.com/memqos/memqos/status"
)

// past is a container whose history a test writes, at a time of its own.
type pastWorld struct {
	*world
	*history
	at  time.Time
	dir *cgroup.Dir
}

const appDir = podDir + "/"

func newPast(t *testing.T) *pastWorld {
	t.Helper()
	w := newWorld(t, podTree, burstable("p", "64Mi", "128Mi"))
	p := &pastWorld{world: w, history: newHistory(), at: time.Unix(1_000_000, 0)}
	p.now = func() time.Time { return p.at }
	dir, err := w.surveyor.site.Load().tree.Open(appDir + idApp)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(dir.Close)
	p.dir = dir
	return p
}

// told is what a status says of the container.
func (p *pastWorld) told(v status.Verdict) status.Cgroup {
	c := status.Cgroup{Verdict: v}
	p.tell(p.dir, &c)
	return c
}

// counters sets what the kernel counts: times over memory.high, and microseconds in
// which some and all tasks waited.
func (p *pastWorld) counters(high, some, full int) {
	p.Helper()
	at := filepath.Join(p.world.dir, appDir+idApp)
	text := fmt.Sprintf("low 0\nhigh %d\nmax 0\noom 0\noom_kill 0\noom_group_kill 0", high)
	cgrouptest.Write(p, filepath.Join(at, "memory.events"), text)
	cgrouptest.Write(p, filepath.Join(at, "memory.events.local"), text)
	cgrouptest.Write(p, filepath.Join(at, "memory.pressure"), fmt.Sprintf(
		"some avg10=0.00 avg60=0.00 avg300=0.00 total=%d\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=%d", some, full))
}

// saw has the history take in a reconcile that left some files as they were.
func (p *pastWorld) saw(left ...change) {
	p.Helper()
	s := seen{Cgroup: nil, dir: p.dir}
	for i := range left {
		left[i].seen = &s
	}
	p.history.saw([]seen{s}, outcome{left: left}, func(uint64) bool {
		// The stall guard answers under its own lock, under which it tells the history.
		if !p.mu.TryLock() {
			p.Fatal("the history is locked while the guard is asked")
		}
		p.mu.Unlock()
		return false
	})
}

func TestHistoryOfChanges(t *testing.T) {
	p := newPast(t)
	const mi = memory.Value(1 << 20)
	s := &seen{dir: p.dir}
	overwrite := func(to memory.Value, cause metrics.Cause) {
		p.at = p.at.Add(time.Second)
		p.overwritten(change{seen: s, file: memory.High, from: to}, 100*mi, cause)
	}
	repair := func(from memory.Value) {
		p.at = p.at.Add(time.Second)
		p.wrote(p.dir, memory.High, from, 100*mi)
	}
	p.wrote(p.dir, memory.Min, 0, 64*mi)
	for range 3 {
		overwrite(memory.Unlimited, metrics.Reset)
		repair(memory.Unlimited)
	}
	overwrite(7*mi, metrics.Foreign)
	want := []status.Change{ // the newest first; the same again counts
		{Time: time.Unix(1_000_007, 0), File: memory.High, By: status.ByForeign, From: 100 * mi, To: 7 * mi, Count: 1},
		{Time: time.Unix(1_000_006, 0), File: memory.High, By: status.ByMemqos, From: memory.Unlimited, To: 100 * mi, Count: 3},
		{Time: time.Unix(1_000_005, 0), File: memory.High, By: status.ByReset, From: 100 * mi, To: memory.Unlimited, Count: 3},
		{Time: time.Unix(1_000_000, 0), File: memory.Min, By: status.ByMemqos, From: 0, To: 64 * mi, Count: 1},
	}
	if diff := cmp.Diff(want, p.told(status.Fulfilled).Changes); diff != "" {
		t.Errorf("changes (-want +got):\n%s", diff)
	}
	for i := range 20 { // of others all differ: the oldest go
		overwrite(memory.Value(i+1)*mi, metrics.Foreign)
	}
	got := p.told(status.Fulfilled).Changes
	if len(got) != changesKept || got[0].To != 20*mi || got[changesKept-1].To != 13*mi {
		t.Errorf("%d changes, from %v to %v; want the last %d", len(got), got[0].To, got[len(got)-1].To, changesKept)
	}
}

// What a reconcile left tells the verdict, and since when.
func TestHistoryOfVerdicts(t *testing.T) {
	const mi = memory.Value(1 << 20)
	drift := change{file: memory.Min, from: 0, to: 64 * mi}
	waits := change{file: memory.Max, from: 200 * mi, to: 128 * mi}
	lands := change{file: memory.High, from: memory.Unlimited, to: 100 * mi}
	raise := change{file: memory.High, from: 50 * mi, to: 100 * mi}
	for _, tt := range []struct {
		name string
		left []change
		want status.Verdict
	}{
		{"nothing left", nil, status.Fulfilled},
		{"protection that is not there", []change{drift}, status.Drifted},
		{"a limit that waits", []change{waits}, status.Pending},
		{"a memory.high that lands", []change{lands}, status.Pending},
		{"a memory.high that is too low", []change{raise}, status.Drifted},
		{"both: the worse", []change{waits, drift}, status.Drifted},
		{"both, the other way round", []change{drift, waits}, status.Drifted},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPast(t)
			p.saw(change{file: memory.Low, from: 1, to: 2}) // Drifted before
			p.at = p.at.Add(time.Minute)
			p.saw(tt.left...)
			since := p.at
			if tt.want == status.Drifted {
				since = since.Add(-time.Minute) // it has been so
			}
			p.at = p.at.Add(time.Hour)
			p.saw(tt.left...)
			if got := p.told(tt.want).Since; !got.Equal(since) {
				t.Errorf("%s since %v, want %v", tt.want, got, since)
			}
		})
	}
}

// Relaxed is said only where nothing else is to be said, with what the guard said.
func TestHistoryOfTheGuard(t *testing.T) {
	p := newPast(t)
	p.guarded(p.dir, guard.Decision{Message: "memory.high raised from 1 to 2"})
	p.guarded(p.dir, guard.Decision{}) // says nothing new
	s := seen{dir: p.dir}
	p.history.saw([]seen{s}, outcome{}, func(inode uint64) bool { return inode == p.dir.Inode })
	if got := p.cgroups[p.dir.Inode].verdict; got != status.Relaxed {
		t.Errorf("verdict %s, want Relaxed", got)
	}
	c := status.Cgroup{Verdict: status.Relaxed, Relaxed: &status.Relaxation{Planned: 1}}
	p.tell(p.dir, &c)
	if c.Relaxed.Why != "memory.high raised from 1 to 2" {
		t.Errorf("why: %q", c.Relaxed.Why)
	}
}

// Throttling is told since the last look that is at least samplePeriod old, or since the
// counters first rose if nothing had happened before.
func TestHistoryOfThrottling(t *testing.T) {
	p := newPast(t)
	if got := p.told(status.Fulfilled).Throttled; got != nil {
		t.Errorf("a cgroup that nobody has looked at: %+v", got)
	}
	p.counters(10, 1000, 100)
	p.saw()
	start := p.at
	if got := p.told(status.Fulfilled).Throttled; got != nil {
		t.Errorf("nothing has happened: %+v", got)
	}
	p.at = start.Add(50 * time.Second)
	p.counters(12, 3000, 150)
	p.counted(appDir + idApp)
	p.at = start.Add(55 * time.Second)
	want := &status.Throttling{From: start.Add(50 * time.Second), HighEvents: 2, SomeUsec: 2000, FullUsec: 50}
	if diff := cmp.Diff(want, p.told(status.Fulfilled).Throttled); diff != "" {
		t.Errorf("the first time (-want +got):\n%s", diff)
	}
	p.saw() // takes a sample, as the counters have changed
	p.at = start.Add(100 * time.Second)
	p.counters(20, 9000, 1150)
	p.counted(appDir + idApp)
	want = &status.Throttling{From: start.Add(100 * time.Second), HighEvents: 8, SomeUsec: 6000, FullUsec: 1000}
	if diff := cmp.Diff(want, p.told(status.Fulfilled).Throttled); diff != "" {
		t.Errorf("again (-want +got):\n%s", diff)
	}
	if err := os.Remove(filepath.Join(p.world.dir, appDir+idApp, "memory.events")); err != nil {
		t.Fatal(err)
	}
	if got := p.told(status.Fulfilled).Throttled; got != nil {
		t.Errorf("without counters: %+v", got)
	}
}

func TestHistoryOfKills(t *testing.T) {
	p := newPast(t)
	for i := range killsKept + 5 {
		p.at = p.at.Add(time.Second)
		p.killed(ctrl.Request{NamespacedName: client.ObjectKey{Namespace: "shop", Name: fmt.Sprint("web-", i)}}, "app", oom.Verdict{Cause: oom.PodLimit, Message: "m"})
	}
	got := p.lately()
	if len(got) != killsKept {
		t.Fatalf("%d kills, want the last %d", len(got), killsKept)
	}
	want := status.Kill{Time: p.at, Namespace: "shop", Pod: fmt.Sprint("web-", killsKept+4), Container: "app", Cause: string(oom.PodLimit), Message: "m"}
	if diff := cmp.Diff(want, got[0]); diff != "" {
		t.Errorf("the newest (-want +got):\n%s", diff)
	}
}

// What is gone is forgotten, also where another cgroup has taken its place; and no
// history remembers nothing.
func TestHistoryForgets(t *testing.T) {
	p := newPast(t)
	p.saw()
	tree := p.surveyor.site.Load().tree
	p.tidy(tree)
	if len(p.cgroups) != 1 || len(p.byPath) != 1 {
		t.Fatalf("a cgroup that is there is forgotten: %d, %d", len(p.cgroups), len(p.byPath))
	}
	at := filepath.Join(p.world.dir, appDir+idApp)
	if err := os.Rename(at, at+"-gone"); err != nil {
		t.Fatal(err)
	}
	cgrouptest.Add(t, p.world.dir, appDir+idApp)
	p.tidy(tree)
	if len(p.cgroups) != 0 || len(p.byPath) != 0 {
		t.Errorf("a cgroup that is gone is kept: %d, %d", len(p.cgroups), len(p.byPath))
	}
	var none *history
	none.changed(p.dir, status.Change{})
	none.saw(nil, outcome{}, nil)
	none.killed(ctrl.Request{}, "", oom.Verdict{})
	none.guarded(p.dir, guard.Decision{Message: "m"})
	c := status.Cgroup{}
	none.tell(p.dir, &c)
	if diff := cmp.Diff(status.Cgroup{}, c, cmpopts.EquateEmpty()); diff != "" || none.lately() != nil {
		t.Errorf("no history tells (-want +got):\n%s", diff)
	}
}

// The reconcilers write the history: who wrote what.
func TestReconcileLeavesAHistory(t *testing.T) {
	w := newWorld(t, podTree, burstable("p", "64Mi", "128Mi"))
	w.pod.writer.history = newHistory()
	w.mustReconcilePod("p")
	file := filepath.Join(w.dir, podDir, idApp, "memory.high")
	cgrouptest.Write(t, file, "max")
	w.mustReconcilePod("p")
	cgrouptest.Write(t, file, "4096")
	w.mustReconcilePod("p")
	dir, err := w.surveyor.site.Load().tree.Open(podDir + "/" + idApp)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	c := status.Cgroup{Verdict: status.Fulfilled}
	w.pod.writer.history.tell(dir, &c)
	var got []string
	for _, x := range c.Changes {
		got = append(got, fmt.Sprintf("%s %s %s>%s x%d", x.File, x.By, x.From, x.To, x.Count))
	}
	want := []string{
		"memory.high memqos 4096>127504384 x1",
		"memory.high foreign 127504384>4096 x1",
		"memory.high memqos max>127504384 x2", // the first write, and the repair
		"memory.high reset 127504384>max x1",
		"memory.min memqos 0>67108864 x1",
	}
	if diff := cmp.Diff(strings.Join(want, "\n"), strings.Join(got, "\n")); diff != "" {
		t.Errorf("changes (-want +got):\n%s", diff)
	}
}
