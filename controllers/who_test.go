package controllers

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/memqos/memqos/config"
	"github.com/memqos/memqos/metrics"
	"github.com/memqos/memqos/qos"
)

// annotate sets an annotation of pod p; empty removes it.
func (w *world) annotate(name, value string) {
	w.Helper()
	var pod corev1.Pod
	if err := w.pods.Get(w.Context(), client.ObjectKey{Namespace: "default", Name: "p"}, &pod); err != nil {
		w.Fatal(err)
	}
	if pod.Annotations == nil {
		pod.Annotations = map[string]string{}
	}
	pod.Annotations[name] = value
	if value == "" {
		delete(pod.Annotations, name)
	}
	if err := w.pods.Update(w.Context(), &pod); err != nil {
		w.Fatal(err)
	}
	w.mustReconcilePod("p")
	w.reconcileNode()
}

// A pod that leaves the set gets back what it had, and so do the sums; a pod that
// comes back gets its values.
func TestLeavingTheSet(t *testing.T) {
	w := newWorld(t, podTree, burstable("p", "64Mi", "128Mi"))
	before := w.snapshot()
	for range 2 {
		w.annotate(qos.AnnotationExclude, "")
		w.wants(podDir+"/"+idApp, "67108864 127504384 134217728")
		w.annotate(qos.AnnotationExclude, "true")
		if diff := cmp.Diff(before, w.snapshot()); diff != "" {
			t.Errorf("an excluded pod (-before +after):\n%s", diff)
		}
	}
}

// A file that is kept is given back, and what somebody writes there stays.
func TestKeep(t *testing.T) {
	w := newWorld(t, podTree, burstable("p", "64Mi", "128Mi"))
	w.annotate(qos.AnnotationKeep, "")
	w.annotate(qos.AnnotationKeep, "memory.high")
	w.wants(podDir+"/"+idApp, "67108864 max 134217728")
	b := &bystander{w}
	b.set(podDir+"/"+idApp, "memory.high", "100663296")
	w.mustReconcilePod("p")
	w.wants(podDir+"/"+idApp, "67108864 100663296 134217728")
}

func TestBadAnnotation(t *testing.T) {
	w := newWorld(t, podTree, burstable("p", "64Mi", "128Mi"))
	w.annotate(qos.AnnotationFactor, "high")
	w.mustReconcilePod("p")
	w.wants(podDir+"/"+idApp, "67108864 127504384 134217728")
	if got := w.announced(); len(got) != 1 || !strings.Contains(got[0], "MemoryQoSAnnotationIgnored") || !strings.Contains(got[0], `"high"`) {
		t.Errorf("announced %q, want one event that names the value", got)
	}
}

// A dry run takes the same way up to the write.
func TestDryRun(t *testing.T) {
	w := newWorld(t, podTree, burstable("p", "64Mi", "128Mi"))
	c := w.surveyor.config.Load().DeepCopy()
	c.Mode = config.DryRun
	w.surveyor.config.Store(c)
	before := w.snapshot()
	w.mustReconcilePod("p")
	w.reconcileNode()
	if diff := cmp.Diff(before, w.snapshot()); diff != "" {
		t.Errorf("a dry run wrote (-before +after):\n%s", diff)
	}
	if got := w.writes(metrics.DryRun); got != 5 {
		t.Errorf("%d writes were left out, want 5", got)
	}
	if got := len(w.pod.writer.ledger.All()); got != 0 {
		t.Errorf("%d entries in the ledger of a dry run", got)
	}
}

// A good configuration applies at once, a bad one changes nothing and is told of.
func TestReconfigure(t *testing.T) {
	w := newWorld(t, podTree, burstable("p", "64Mi", "128Mi"))
	w.mustReconcilePod("p")
	a := &agent{surveyor: w.surveyor, pass: newPass(w.surveyor.metrics), metrics: w.surveyor.metrics}
	halved := w.surveyor.config.Load().DeepCopy()
	halved.MemoryThrottlingFactor = new(0.5)
	for _, u := range []config.Update{{Config: halved}, {Err: errors.New("memoryThrottlingFactor: 7: must be at most 1")}} {
		a.reconfigure(w.pod.announce, u)
		w.surveyor.survey(t.Context())
		w.mustReconcilePod("p")
		w.wants(podDir+"/"+idApp, "67108864 100663296 134217728")
	}
	select {
	case <-a.pass.asked:
	default:
		t.Error("no full pass was asked for")
	}
	if got := w.announced(); len(got) != 1 || !strings.Contains(got[0], "MemoryQoSConfigurationRefused") || !strings.Contains(got[0], "must be at most 1") {
		t.Errorf("announced %q, want one refusal that says why", got)
	}
}
