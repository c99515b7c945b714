package controllers

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/memqos/memqos/cgroup/cgrouptest"
	"github.com/memqos/memqos/guard"
	"github.com/memqos/memqos/memory"
	"github.com/memqos/memqos/qos"
	"github.com/memqos/memqos/status"
)

// inode is the inode number of the container's cgroup.
func (w *world) inode() uint64 {
	w.Helper()
	d, err := w.surveyor.site.Load().tree.Open(podDir + "/" + idApp)
	if err != nil {
		w.Fatal(err)
	}
	defer d.Close()
	return d.Inode
}

// relaxedState is a state directory in which the container is relaxed.
func (w *world) relaxedState(boot string) string {
	w.Helper()
	dir := w.TempDir()
	data, err := json.Marshal(latchState{Boot: boot, Latches: map[uint64]guard.Latch{w.inode(): {High: memory.Unlimited, Since: 1, Hold: time.Hour}}})
	if err != nil {
		w.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, latchFile), data, 0o600); err != nil {
		w.Fatal(err)
	}
	return dir
}

// A container that was relaxed stays so when the agent is restarted, and no longer
// than the boot. Inspection calls it so.
func TestLatchesOutliveTheAgent(t *testing.T) {
	for boot, want := range map[string]string{"boot": "67108864 max 134217728", "another": "67108864 127504384 134217728"} {
		w := newWorld(t, podTree, burstable("p", "64Mi", "128Mi"))
		w.startAgent(w.relaxedState(boot))
		w.mustReconcilePod("p")
		w.wants(podDir+"/"+idApp, want)
	}
	w := newWorld(t, podTree)
	state := w.relaxedState("boot")
	if got, err := loadLatches(state, "boot"); err != nil || got[w.inode()].High != memory.Unlimited {
		t.Errorf("relaxed to %s, want max (%v)", got[w.inode()].High, err)
	}
	if got, err := loadLatches(state, "another"); err != nil || len(got) != 0 {
		t.Errorf("of another boot: %v (%v)", got, err)
	}
}

// A spoilt file loses the latches and nothing else.
func TestSpoiltLatches(t *testing.T) {
	w := newWorld(t, podTree, burstable("p", "64Mi", "128Mi"))
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, latchFile), []byte(`{"boot":"boot","latches":{"x":1}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	w.startAgent(dir)
	w.mustReconcilePod("p")
	w.wants(podDir+"/"+idApp, "67108864 127504384 134217728")
}

// What is armed follows from memory.events, and a pod that opts out ends it.
func TestGuardIsArmedByEvents(t *testing.T) {
	w := newWorld(t, podTree, burstable("p", "64Mi", "128Mi"))
	for file, content := range map[string]string{
		"memory.events.local": "low 0\nhigh 1\nmax 0\noom 0\noom_kill 0\noom_group_kill 0",
		"memory.pressure":     "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0",
		"memory.stat":         "anon 0\nfile 0\npgfault 0\npgmajfault 0\npgscan 0\npgsteal 0\nworkingset_refault_anon 0\nworkingset_refault_file 0",
		"cpu.stat":            "usage_usec 0",
		"memory.current":      "127000000",
	} {
		cgrouptest.Write(t, filepath.Join(w.dir, podDir, idApp, file), content)
	}
	w.mustReconcilePod("p")
	g := w.pod.writer.guard
	if next := g.readings(); !next.IsZero() {
		t.Error("a reading is due although nothing has happened")
	}
	g.counted(podDir + "/" + idSandbox)
	g.counted(podDir) // the kernel tells of every ancestor too
	if next := g.readings(); !next.IsZero() {
		t.Error("a reading is due that nobody needs")
	}
	g.counted(podDir + "/" + idApp)
	if next := g.readings(); next.IsZero() {
		t.Error("near memory.high with an event, and no further reading is due")
	}

	w.annotate(qos.AnnotationStallGuard, "disabled")
	g.readings()
	g.counted(podDir + "/" + idApp)
	if next := g.readings(); !next.IsZero() {
		t.Error("a reading is due of a pod that has opted out")
	}
	if err := os.RemoveAll(filepath.Join(w.dir, podDir, idApp)); err != nil {
		t.Fatal(err)
	}
	g.tidy(w.surveyor.site.Load().tree)
	if len(g.guarded) != 0 {
		t.Errorf("%d cgroups are guarded that are gone", len(g.guarded))
	}
}

func TestInspectShowsRelaxed(t *testing.T) {
	w := newWorld(t, podTree, burstable("p", "64Mi", "128Mi"))
	state := w.relaxedState("boot")
	w.startAgent(state)
	w.mustReconcilePod("p")
	v := view{site: w.surveyor.site.Load()}
	var err error
	if v.relaxed, err = loadLatches(state, "boot"); err != nil {
		t.Fatal(err)
	}
	var pods corev1.PodList
	if err := w.pods.List(t.Context(), &pods); err != nil {
		t.Fatal(err)
	}
	in, err := v.status("n", 0, pods.Items, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range in.Cgroups {
		if o.Container == "app" && (o.Verdict != status.Relaxed || o.Wanted[memory.High] != memory.Unlimited) {
			t.Errorf("got %s, wanted memory.high %s; want %s, max", o.Verdict, o.Wanted[memory.High], status.Relaxed)
		}
	}
}
