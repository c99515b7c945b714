package controllers

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/memqos/memqos/cgroup/cgrouptest"
	"github.com/memqos/memqos/memory"
	"github.com/memqos/memqos/metrics"
)

func TestNextStep(t *testing.T) {
	const mi = 1 << 20
	for _, tt := range []struct {
		name                      string
		usage, high, target, want memory.Value
	}{
		{"from max, at most a 32nd of usage", 320 * mi, memory.Unlimited, 100 * mi, 310 * mi},
		{"further", 310 * mi, 310 * mi, 100 * mi, 300*mi + 5*mi/16/4096*4096},
		{"the last step", 101 * mi, 102 * mi, 100 * mi, 100 * mi},
		{"usage is below already", 50 * mi, memory.Unlimited, 100 * mi, 100 * mi},
		{"never up", 400 * mi, 200 * mi, 100 * mi, 200 * mi},
	} {
		if got := nextStep(tt.usage, tt.high, tt.target, 4096); got != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, got, tt.want)
		}
	}
}

// landingWorld is a container that uses more than its memory.high is to be.
func landingWorld(t *testing.T) *world {
	return newWorld(t, strings.ReplaceAll(podTree, idApp+" 0 0 max 134217728", idApp+" 0 0 max 134217728 130000000"), burstable("p", "64Mi", "128Mi"))
}

// The worker that reconciles does not lower below usage itself. Where nothing can
// be reclaimed, as in a directory that is no cgroup, the old value is put back.
func TestLandingThatFindsNothing(t *testing.T) {
	w := landingWorld(t)
	w.mustReconcilePod("p")
	w.wants(podDir+"/"+idApp, "67108864 max 134217728")
	l := w.pod.writer.landings
	if len(l.queue) != 1 || w.writes(metrics.Landing) != 1 {
		t.Fatalf("%d landings are queued, want 1", len(l.queue))
	}
	w.mustReconcilePod("p")
	if len(l.queue) != 1 {
		t.Errorf("queued again: %d", len(l.queue))
	}
	one := <-l.queue
	l.land(t.Context(), one)
	w.wants(podDir+"/"+idApp, "67108864 max 134217728")
	if got := one.due; time.Until(got) <= 0 {
		t.Errorf("tried again at %v, want later", got)
	}
	w.mustReconcilePod("p")
	if len(l.queue) != 0 {
		t.Error("queued again before the hold is over")
	}

	// What is in use has fallen by itself: no landing is needed.
	cgrouptest.Write(t, filepath.Join(w.dir, podDir, idApp, "memory.current"), "1000000")
	w.mustReconcilePod("p")
	w.wants(podDir+"/"+idApp, "67108864 127504384 134217728")
	if len(l.all) != 0 {
		t.Errorf("%d landings are left", len(l.all))
	}
}

// A raise calls a landing off.
func TestRaiseOvertakes(t *testing.T) {
	w := landingWorld(t)
	w.mustReconcilePod("p")
	l := w.pod.writer.landings
	one := <-l.queue
	cgrouptest.Write(t, filepath.Join(w.dir, podDir, idApp, "memory.high"), "4096")
	w.mustReconcilePod("p")
	w.wants(podDir+"/"+idApp, "67108864 127504384 134217728")
	l.land(t.Context(), one)
	w.wants(podDir+"/"+idApp, "67108864 127504384 134217728")
}
