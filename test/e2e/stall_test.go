//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/memqos/memqos/hack/nodeagent"
	"github.com/memqos/memqos/hack/testnode"
	"github.com/memqos/memqos/test/conformance"
)

// A program that grows anonymous memory, without swap, from nothing to 300Mi: past a
// memory.high of some 150Mi, below its limit of 400Mi.
const (
	stallFactor  = 0.35
	stallRequest = 16 << 20
	stallLimit   = 400 << 20
	stallTarget  = 300 << 20
)

var stallHigh = throttled(stallRequest, stallLimit, stallFactor)

// throttled is memory.high by the formula of 1.27.
func throttled(request, limit int64, factor float64) int64 {
	return int64(float64(request)+float64(limit-request)*factor) / 4096 * 4096
}

func stallPod(name string) []byte { return workloadPod(name, "16Mi", "400Mi", "alloc", "300Mi") }

// growth is what the kernel shows of a growing container.
type growth struct {
	usage, high int64
	events      int64
	fullUs      int64
	scanned     int64
}

func readGrowth(t *testing.T, node *testnode.Node, cgroup string) (growth, error) {
	t.Helper()
	out, err := node.Run(t.Context(), "sh", "-c", `cd "/sys/fs/cgroup/$0" && cat memory.current memory.high memory.events.local memory.pressure memory.stat`, cgroup)
	if err != nil {
		return growth{}, err
	}
	var g growth
	for i, line := range strings.Split(out, "\n") {
		fields := strings.Fields(line)
		switch {
		case i == 0:
			g.usage, _ = strconv.ParseInt(line, 10, 64)
		case i == 1 && line == "max":
			g.high = 1 << 62
		case i == 1:
			g.high, _ = strconv.ParseInt(line, 10, 64)
		case len(fields) == 2 && fields[0] == "high":
			g.events, _ = strconv.ParseInt(fields[1], 10, 64)
		case len(fields) == 2 && fields[0] == "pgscan":
			g.scanned, _ = strconv.ParseInt(fields[1], 10, 64)
		case len(fields) == 5 && fields[0] == "full":
			g.fullUs, _ = strconv.ParseInt(strings.TrimPrefix(fields[4], "total="), 10, 64)
		}
	}
	if g.usage == 0 {
		return g, fmt.Errorf("no memory.current in %q", out)
	}
	return g, nil
}

// atHigh starts a growing pod and returns its cgroup once it is at its memory.high.
func atHigh(t *testing.T, node *testnode.Node, name string) string {
	t.Helper()
	apply(t, node, stallPod(name))
	cgroup := cgroupOf(t, node, containerID(t, node, "default/"+name))
	eventually(t, "the program is at its memory.high", func() error {
		g, err := readGrowth(t, node, cgroup)
		if err == nil && g.usage < stallHigh-(2<<20) {
			err = fmt.Errorf("it uses %d", g.usage)
		}
		return err
	})
	return cgroup
}

// What memory.high does to a program whose memory cannot be reclaimed: under the
// kubelet's own MemoryQoS it stands still; with memqos it goes on.
func TestStall(t *testing.T) {
	t.Run("kubelet", func(t *testing.T) {
		t.Parallel()
		node := bareNode(t, testnode.Options{
			Kubernetes: "1.27.4", CgroupDriver: "systemd",
			FeatureGates: map[string]bool{"MemoryQoS": true}, KubeletConfig: map[string]any{"memoryThrottlingFactor": stallFactor},
		})
		cgroup := atHigh(t, node, "grower")
		before, err := readGrowth(t, node, cgroup)
		if err != nil {
			t.Fatal(err)
		}
		plot := newSeries("Under a kubelet with the gate on: growth of a program past its memory.high of 150.4 MiB", "seconds since it reached memory.high", "MiB in use")
		var after growth
		for begin := time.Now(); time.Since(begin) < time.Minute; time.Sleep(2 * time.Second) {
			if after, err = readGrowth(t, node, cgroup); err != nil {
				t.Fatal(err)
			}
			plot.add("in use", time.Since(begin).Seconds(), float64(after.usage)/(1<<20))
			plot.add("memory.high", time.Since(begin).Seconds(), float64(after.high)/(1<<20))
		}
		plot.save(t, "stall-kubelet")
		t.Logf("in 60 s at a memory.high of %d: from %d to %d bytes, %d high events, full pressure for %.1f s, %d pages scanned",
			after.high, before.usage, after.usage, after.events-before.events, float64(after.fullUs-before.fullUs)/1e6, after.scanned-before.scanned)
		if after.high != stallHigh {
			t.Errorf("memory.high is %d, want %d: this is no comparison", after.high, stallHigh)
		}
		if after.usage >= stallTarget {
			t.Error("the program is done: there is no stall to be freed from")
		}
	})
	t.Run("memqos", func(t *testing.T) {
		t.Parallel()
		node := bareNode(t, testnode.Options{Kubernetes: "1.27.4", CgroupDriver: "systemd"})
		apply(t, node, besidePods("bystander"))
		before := takeSnapshot(t, node)
		agent := installAgent(t, node, fmt.Sprintf("memoryThrottlingFactor: %v\n", stallFactor))
		runs := 1
		if n, err := strconv.Atoi(os.Getenv("MEMQOS_STALLS")); err == nil {
			runs = n
		}
		for i := range runs {
			name := fmt.Sprintf("grower-%d", i)
			cgroup := atHigh(t, node, name)
			start := time.Now()
			relaxed := time.Duration(0)
			eventually(t, "the program has all that it wants", func() error {
				g, err := readGrowth(t, node, cgroup)
				if err != nil {
					return err
				}
				if relaxed == 0 && g.high > stallHigh {
					relaxed = time.Since(start)
				}
				if g.usage < stallTarget {
					return fmt.Errorf("it uses %d, memory.high is %d", g.usage, g.high)
				}
				return nil
			})
			t.Logf("%s: relaxed %.1f s after it reached memory.high, done after %.1f s (in the emulated node)", name, relaxed.Seconds(), time.Since(start).Seconds())
			wantEvent(t, node, "Pod", name, "MemoryThrottleRelaxed")
			out, err := agent.Inspect(t.Context(), "table")
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(out, "Relaxed") {
				t.Errorf("inspect shows no relaxed container:\n%s", out)
			}
			if err := node.Delete(t.Context(), stallPod(name)); err != nil {
				t.Fatal(err)
			}
		}
		if n := metric(t, agent, "memqos_guard_changes_total", map[string]string{"reason": "MemoryThrottleRelaxed"}); n != float64(runs) {
			t.Errorf("%v relaxations of %d stalled programs", n, runs)
		}
		testRestore(t, node, agent, before)
	})
}

// testRestore: memqos restore leaves the tree as it was, also in cgroups that were made
// since, and a second one finds nothing.
func testRestore(t *testing.T, node *testnode.Node, agent *nodeagent.Agent, before conformance.Snapshot) {
	t.Helper()
	apply(t, node, besidePods("bystander", "newcomer"))
	eventually(t, "the newcomer has its values", func() error {
		if got, want := takeSnapshot(t, node)["container default/newcomer/app"]["memory.min"], fmt.Sprint(17<<20); got != want {
			return fmt.Errorf("memory.min is %s, want %s", got, want)
		}
		return nil
	})
	if err := agent.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(differences(pick(before, "bystander"), pick(takeSnapshot(t, node), "bystander"))) == 0 {
		t.Fatal("there is nothing to restore")
	}
	restore := []string{"/usr/local/bin/memqos", "restore", "--config", "/etc/memqos/config.yaml"}
	out, err := node.Run(t.Context(), restore...)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("memqos restore: %s", strings.TrimSpace(out))
	after := takeSnapshot(t, node)
	if err := same(differences(pick(before, "bystander"), pick(after, "bystander"))); err != nil {
		t.Error(err)
	}
	for name, files := range after {
		if files["memory.min"] != "0" || files["memory.low"] != "0" || files["memory.high"] != "max" {
			t.Errorf("%s is not as a kubelet with the gate off leaves it: %v", name, files)
		}
	}
	if out, err := node.Run(t.Context(), restore...); err != nil || !strings.HasPrefix(out, "0 files restored, 0 needed nothing") {
		t.Errorf("a second restore: %s (%v)", out, err)
	}
}
