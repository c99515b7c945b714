package controllers

import (
	"path/filepath"
	"testing"
	"time"

	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/memqos/memqos/cgroup/cgrouptest"
	"github.com/memqos/memqos/config"
	"github.com/memqos/memqos/memory"
	"github.com/memqos/memqos/metrics"
	"github.com/memqos/memqos/qos"
)

// served is a world in which everything holds what is wanted.
func served(t *testing.T) *world {
	t.Helper()
	w := newWorld(t, podTree+"\n"+podDir+"/"+idOther+" 0 0 max 134217728", burstable("p", "64Mi", "128Mi"))
	w.mustReconcilePod("p")
	w.reconcileNode()
	return w
}

// overwrite writes a file and tells the writer, as the kernel does.
func (w *world) overwrite(cgroup string, file memory.File, value string) (settled bool) {
	w.Helper()
	cgrouptest.Write(w, filepath.Join(w.dir, cgroup, string(file)), value)
	return w.pod.writer.reflex(w.surveyor.log, w.surveyor.site.Load().tree, cgroup, file)
}

// holds asserts what a file holds.
func (w *world) holds(cgroup string, file memory.File, want string) {
	w.Helper()
	if got := cgrouptest.Read(w, filepath.Join(w.dir, cgroup, string(file))); got != want {
		w.Errorf("%s of %s is %s, want %s", file, cgroup, got, want)
	}
}

// A reset of protection is put right before any reconcile, on every level, and counts
// as one repair.
func TestReflex(t *testing.T) {
	w := served(t)
	written := w.writes(metrics.Written)
	for _, cgroup := range []string{"kubepods", "kubepods/burstable", podDir, podDir + "/" + idApp} {
		if !w.overwrite(cgroup, memory.Min, "0") {
			t.Errorf("a reset of %s is not settled", cgroup)
		}
		w.holds(cgroup, memory.Min, "67108864")
		if !w.overwrite(cgroup, memory.Min, "67108864") {
			t.Errorf("what is wanted of %s, written once more, is not settled", cgroup)
		}
	}
	w.mustReconcilePod("p")
	w.reconcileNode()
	if got := w.repairs(metrics.Reset); got != 4 {
		t.Errorf("%d repairs, want 4", got)
	}
	if got := w.writes(metrics.Written) - written; got != 4 {
		t.Errorf("%d writes, want 4", got)
	}
}

// What is no reset of memqos's own protection is left to the reconcile.
func TestReflexLeaves(t *testing.T) {
	container := podDir + "/" + idApp
	for _, tt := range []struct {
		name    string
		prepare func(*world)
		cgroup  string
		file    memory.File
		value   string
	}{
		{"somebody's value", nil, container, memory.Min, "4096"},
		{"memory.high", nil, container, memory.High, "max"},
		{"memory.max", nil, "kubepods", memory.Max, "max"},
		{"what memqos never wrote", nil, podDir + "/" + idOther, memory.Min, "0"},
		{"a cgroup that is not there", nil, podDir + "/" + idInit, memory.Min, ""},
		{"a dry run", func(w *world) {
			c := w.surveyor.config.Load().DeepCopy()
			c.Mode = config.DryRun
			w.surveyor.config.Store(c)
		}, container, memory.Min, "0"},
		{"what a kubelet does", func(w *world) {
			w.pod.writer.kubelet.weigh(protection, func(e *evidence) { e.configured = true })
		}, container, memory.Min, "0"},
		{"a pod that is excluded since", func(w *world) { w.annotate(qos.AnnotationExclude, "true") }, container, memory.Min, "0"},
		{"a fight", func(w *world) {
			noon := time.Now()
			w.pod.writer.contests.now = func() time.Time { return noon }
			for range contestFree + 1 {
				w.overwrite(container, memory.Min, "0")
			}
		}, container, memory.Min, "0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := served(t)
			if tt.prepare != nil {
				tt.prepare(w)
			}
			written, repairs := w.writes(metrics.Written), w.repairs(metrics.Reset)
			settled := false
			if tt.value != "" {
				settled = w.overwrite(tt.cgroup, tt.file, tt.value)
				w.holds(tt.cgroup, tt.file, tt.value)
			} else {
				settled = w.pod.writer.reflex(w.surveyor.log, w.surveyor.site.Load().tree, tt.cgroup, tt.file)
			}
			if settled {
				t.Error("no reconcile is to look at it")
			}
			if got := w.writes(metrics.Written) - written; got != 0 {
				t.Errorf("%d writes, want none", got)
			}
			if got := w.repairs(metrics.Reset) - repairs; got != 0 {
				t.Errorf("%d repairs, want none", got)
			}
		})
	}
}

// A reconcile that has looked before the reflex does not repair the same reset again,
// whether it wants what memqos last wrote or, since a pod has come, something else.
func TestReflexBetweenLookAndWrite(t *testing.T) {
	t.Run("the same", func(t *testing.T) { testReflexBetween(t, false, "67108864", 1) })
	t.Run("another value", func(t *testing.T) { testReflexBetween(t, true, "134217728", 2) })
}

func testReflexBetween(t *testing.T, more bool, want string, writes int) {
	w := served(t)
	if more {
		second := burstable("q", "64Mi", "128Mi")
		second.UID = "uid-2"
		if err := w.pods.Create(t.Context(), second); err != nil {
			t.Fatal(err)
		}
	}
	wr, site := w.node.writer, w.surveyor.site.Load()
	if more { // kubepods is not what this is about
		cgrouptest.Write(t, filepath.Join(w.dir, "kubepods", "memory.min"), want)
	}
	cgrouptest.Write(t, filepath.Join(w.dir, "kubepods/burstable", "memory.min"), "0")
	cgroups, unread, err := w.node.observe(t.Context(), site)
	defer closeAll(cgroups)
	if err != nil || unread != nil {
		t.Fatal(err, unread)
	}
	written := w.writes(metrics.Written)
	wr.reflex(w.surveyor.log, site.tree, "kubepods/burstable", memory.Min)
	o, err := wr.apply(t.Context(), w.surveyor.log, site.tree, ctrl.Request{}, cgroups)
	if err != nil || len(o.left) != 0 {
		t.Errorf("left %v, error %v", o.left, err)
	}
	w.holds("kubepods/burstable", memory.Min, want)
	if got := w.writes(metrics.Written) - written; got != writes {
		t.Errorf("%d writes, want %d", got, writes)
	}
	if got := w.repairs(metrics.Reset); got != 1 {
		t.Errorf("%d repairs, want 1", got)
	}
}
