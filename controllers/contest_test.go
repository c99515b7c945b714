package controllers

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/memqos/memqos/cgroup/cgrouptest"
	"github.com/memqos/memqos/ledger"
	"github.com/memqos/memqos/memory"
)

// overwritten tells how often a file is repaired within a time in which somebody
// overwrites it again and again, and whether it is contested in the end. It asks
// as the agent does: at each overwrite, and when it was told to come back.
func overwritten(every, within time.Duration, harmless bool) (repairs int, contested bool) {
	now := time.Unix(0, 0)
	c := newContests()
	c.now = func() time.Time { return now }
	key := ledger.Key{Inode: 1, File: memory.High}
	dirty, nextWrite, nextLook := false, now, now
	for end := now.Add(within); now.Before(end); now = now.Add(100 * time.Millisecond) {
		if !now.Before(nextWrite) {
			dirty, nextWrite, nextLook = true, now.Add(every), now
		}
		if !dirty || now.Before(nextLook) {
			continue
		}
		wait, given := c.repair(key, harmless)
		contested = given
		if wait > 0 {
			nextLook = now.Add(wait)
			continue
		}
		repairs, dirty = repairs+1, false
	}
	return repairs, contested
}

func TestContests(t *testing.T) {
	for _, tt := range []struct {
		name     string
		every    time.Duration
		harmless bool
		min, max int // repairs in an hour
		given    bool
	}{
		{"the kubelet's tick", time.Minute, false, 60, 60, false},
		{"every ten seconds", 10 * time.Second, false, 20, 60, true},
		{"every second", time.Second, false, 20, 40, true},
		{"all the time", 100 * time.Millisecond, false, 20, 40, true},
		{"resets of a class under churn", time.Second, true, 3600, 3600, false},
		{"resets of a class by an agent that answers", 100 * time.Millisecond, true, 3600, 3600 + contestResets, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, given := overwritten(tt.every, time.Hour, tt.harmless)
			if got < tt.min || got > tt.max || given != tt.given {
				t.Errorf("%d repairs in an hour, contested %t; want %d to %d, %t", got, given, tt.min, tt.max, tt.given)
			}
		})
	}
}

func TestContestIsForgotten(t *testing.T) {
	now := time.Unix(0, 0)
	c := newContests()
	c.now = func() time.Time { return now }
	key := ledger.Key{Inode: 1, File: memory.High}
	for range contestFree + contestSlow {
		for {
			wait, _ := c.repair(key, false)
			if wait == 0 {
				break
			}
			now = now.Add(wait)
		}
	}
	if wait, contested := c.repair(key, false); !contested || wait <= 0 || wait > contestRespite {
		t.Fatalf("after %d repairs: wait %s, contested %t", contestFree+contestSlow, wait, contested)
	}
	if got := c.contested(); got != 1 {
		t.Errorf("%d contested files, want 1", got)
	}
	now = now.Add(contestRespite + contestMemory)
	if got := c.contested(); got != 0 {
		t.Errorf("%d contested files long after, want 0", got)
	}
	if wait, _ := c.repair(key, false); wait != 0 {
		t.Errorf("long after, a repair has to wait %s", wait)
	}
}

// A class that somebody else keeps writing is told of on the Node, once.
func TestContestOfAClass(t *testing.T) {
	w := newWorld(t, podTree, burstable("p", "64Mi", "128Mi"))
	now := time.Now()
	w.node.writer.contests.now = func() time.Time { return now }
	w.reconcileNode()
	file := filepath.Join(w.dir, "kubepods/burstable/memory.min")
	for range 100 {
		cgrouptest.Write(t, file, "4096")
		w.reconcileNode()
		now = now.Add(11 * time.Second)
	}
	if got := cgrouptest.Read(t, file); got != "4096" {
		t.Errorf("memory.min is %s: memqos goes on", got)
	}
	var told []string
	for _, e := range w.announced() {
		if strings.Contains(e, "MemoryQoSContested") {
			told = append(told, e)
		}
	}
	if len(told) == 0 || len(told) > 4 || !strings.Contains(told[0], "kubepods/burstable: somebody else keeps writing") {
		t.Errorf("events: %q", told)
	}
}
