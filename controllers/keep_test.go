package controllers

import (
	"path/filepath"
	"testing"

	"github.com/memqos/memqos/cgroup/cgrouptest"
	"github.com/memqos/memqos/metrics"
)

// An agent that starts without the API server keeps the protection that an earlier one
// gave, and touches nothing else: not what somebody else wrote, not memory.high, and no
// cgroup that memqos has not written.
func TestKeepsProtection(t *testing.T) {
	w := newWorld(t, podTree+"\n"+podDir+"/"+idOther+" 0 0 max 134217728", burstable("p", "64Mi", "128Mi"))
	w.mustReconcilePod("p")
	w.reconcileNode()
	written := w.writes(metrics.Written)
	set := func(cgroup, file, value string) { cgrouptest.Write(t, filepath.Join(w.dir, cgroup, file), value) }
	set("kubepods/burstable", "memory.min", "0")
	set("kubepods", "memory.min", "4096")
	set(podDir, "memory.min", "0")
	set(podDir+"/"+idApp, "memory.high", "max")

	keepNow := func() {
		t.Helper()
		if err := keep(w.surveyor.site.Load().tree, w.pod.writer.ledger, w.surveyor.metrics); err != nil {
			t.Fatal(err)
		}
	}
	keepNow()
	w.wants("kubepods/burstable", "67108864 max max")
	w.wants("kubepods", "4096 max 8589934592")
	w.wants(podDir, "67108864 max max")
	w.wants(podDir+"/"+idApp, "67108864 max 134217728")
	w.wants(podDir+"/"+idOther, "0 max 134217728")
	keepNow()
	if got := w.writes(metrics.Written) - written; got != 2 {
		t.Errorf("%d writes, want 2", got)
	}
}

func TestLevelOf(t *testing.T) {
	w := newWorld(t, podTree)
	for dir, want := range map[string]string{
		"kubepods": "node", "kubepods/burstable": "qos", podDir: "pod", podDir + "/" + idApp: "container", podDir + "/" + idApp + "/container": "container",
	} {
		if got := levelOf(w.surveyor.site.Load().tree.Layout, dir); string(got) != want {
			t.Errorf("%s is of level %s, want %s", dir, got, want)
		}
	}
}
