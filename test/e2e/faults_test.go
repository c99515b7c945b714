//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/memqos/memqos/hack/nodeagent"
	"github.com/memqos/memqos/hack/testnode"
)

// Whatever fails, what is there in the end is what is wanted.
func TestFaults(t *testing.T) {
	t.Parallel()
	size := intimeSize(t)
	node := bareNode(t, testnode.Options{Kubernetes: "1.27.4", CgroupDriver: "systemd"})
	apply(t, node, startsPod("stay", 0, "", started{"app", 26, 78, "", 1}, started{"second", 28, 84, "", 1}))
	untouched := pick(takeSnapshot(t, node), "stay")
	agent := installAgent(t, node, "")
	converged(t, node, agent)

	t.Run("overflow", func(t *testing.T) {
		limited(t, node, agent, "fs.inotify.max_queued_events", "1", func(agent *nodeagent.Agent) {
			churn(t, node, "overflow", min(size.churn, 20))
			eventually(t, "an overflow", func() error {
				for range 10 {
					overwrite(t, node)
				}
				n, err := agent.Metric(t.Context(), "memqos_event_overflows_total", nil)
				if err == nil && n == 0 {
					err = errors.New("none yet")
				}
				return err
			})
			converged(t, node, agent)
		})
	})
	t.Run("watch limit", func(t *testing.T) {
		limited(t, node, agent, "fs.inotify.max_user_watches", "1", func(agent *nodeagent.Agent) {
			eventually(t, "cgroups are unwatched", func() error {
				n, err := agent.Metric(t.Context(), "memqos_unwatched_cgroups", nil)
				if err == nil && n == 0 {
					err = errors.New("none")
				}
				return err
			})
			churn(t, node, "unwatched", min(size.churn, 20))
			overwrite(t, node)
			converged(t, node, agent)
		})
		eventually(t, "with watches to be had, all is watched", func() error {
			n, err := agent.Metric(t.Context(), "memqos_unwatched_cgroups", nil)
			if err == nil && n != 0 {
				err = fmt.Errorf("%v are unwatched", n)
			}
			return err
		})
	})
	t.Run("many pods", func(t *testing.T) {
		churn(t, node, "many", size.churn)
		converged(t, node, agent)
		// Cgroups went while they were written to: that is no failure.
		if n := metric(t, agent, "memqos_writes_total", map[string]string{"result": "failed"}); n != 0 {
			t.Errorf("%v writes have failed, want 0", n)
		}
	})
	t.Run("API server away", func(t *testing.T) { testAPIServerAway(t, node, agent, size.away) })
	t.Run("kubelet restarted", func(t *testing.T) {
		sh(t, node, "systemctl restart kubelet")
		apply(t, node, startsPod("after-restart", 0, "", started{"app", 30, 90, "", 1}))
		converged(t, node, agent)
	})
	t.Run("own cgroup", func(t *testing.T) { testOwnCgroup(t, node, agent) })
	t.Run("killed", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- churning(ctx, node) }()
		for i := range size.kills {
			time.Sleep(time.Duration(rand.IntN(3000)) * time.Millisecond)
			if err := agent.Kill(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := agent.Launch(t.Context()); err != nil {
				t.Fatalf("start %d: %v", i, err)
			}
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := agent.WaitReady(t.Context()); err != nil {
			t.Fatal(err)
		}
		converged(t, node, agent)

		// The ledger went through all of it: it has the way back.
		if err := agent.Kill(t.Context()); err != nil {
			t.Fatal(err)
		}
		out, err := agent.Restore(t.Context())
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		t.Logf("restore: %s", strings.TrimSpace(out))
		if err := same(differences(untouched, pick(takeSnapshot(t, node), "stay"))); err != nil {
			t.Errorf("memqos restore does not give what was there before: %v", err)
		}
	})
}

// limited runs f with an agent that has begun under a sysctl's value, and starts
// it again without.
func limited(t *testing.T, node *testnode.Node, agent *nodeagent.Agent, sysctl, value string, f func(*nodeagent.Agent)) {
	t.Helper()
	was := strings.TrimSpace(sh(t, node, "sysctl -n "+sysctl))
	defer func() {
		sh(t, node, "sysctl -w "+sysctl+"="+was)
	}()
	if err := agent.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	sh(t, node, "sysctl -w "+sysctl+"="+value)
	start(t, agent)
	f(agent)
}

// overwrite writes the kernel's defaults over every memory.high and memory.min of
// the node's pods.
func overwrite(t *testing.T, node *testnode.Node) {
	t.Helper()
	sh(t, node, `for f in $(find /sys/fs/cgroup/kubepods* -name memory.high); do (echo max > $f; echo 0 > ${f%high}min) 2>/dev/null || true; done`) // a pod may go meanwhile
}

// converged waits until inspect, which reads the cluster and the kernel anew, finds
// everything as it should be, and the pods' values in the kernel.
func converged(t *testing.T, node *testnode.Node, agent *nodeagent.Agent) {
	t.Helper()
	eventually(t, "all is as wanted", func() error {
		if err := settled(t, agent); err != nil {
			return err
		}
		for container, want := range map[string]string{"app": high(26, 78), "second": high(28, 84)} {
			if got := takeSnapshot(t, node)["container default/stay/"+container]["memory.high"]; got != want {
				return fmt.Errorf("memory.high of stay/%s is %q, want %s", container, got, want)
			}
		}
		return nil
	})
}

// churn makes n pods and deletes them, ten at a time.
func churn(t *testing.T, node *testnode.Node, name string, n int) {
	t.Helper()
	for i := 0; i < n; i += 10 {
		if err := makeAndDelete(t.Context(), node, fmt.Sprintf("%s-%d", name, i), min(n-i, 10)); err != nil {
			t.Fatal(err)
		}
	}
}

func makeAndDelete(ctx context.Context, node *testnode.Node, name string, n int) error {
	var manifests []byte
	for i := range n {
		manifests = append(manifests, startsPod(fmt.Sprintf("%s-%d", name, i), 0, "", started{"app", 8, 24, "", 1})...)
	}
	if err := node.Apply(ctx, manifests); err != nil {
		return err
	}
	time.Sleep(time.Duration(rand.IntN(4000)) * time.Millisecond) // some run, some not yet
	return node.Delete(ctx, manifests)
}

// churning makes and deletes pods until ctx ends, and leaves none.
func churning(ctx context.Context, node *testnode.Node) error {
	for i := 0; ctx.Err() == nil; i++ {
		// A round is ended, so that none of its pods stays.
		if err := makeAndDelete(context.WithoutCancel(ctx), node, fmt.Sprintf("churn-%d", i), 4); err != nil {
			return err
		}
	}
	return nil
}

// testAPIServerAway: without the API server, a container that restarts begins with
// its values, and an agent that starts changes nothing.
func testAPIServerAway(t *testing.T, node *testnode.Node, agent *nodeagent.Agent, away time.Duration) {
	if err := node.SetAPIServer(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	back := func() {
		if err := node.SetAPIServer(t.Context(), true); err != nil {
			t.Fatal(err)
		}
	}
	defer back()
	time.Sleep(away)
	want := fmt.Sprintf("high %s min %d", high(26, 78), 26<<20)
	log := "cat /var/log/pods/default_stay_*/app/*.log"
	begun := strings.Count(sh(t, node, log), "stdout F high ")
	sh(t, node, "pkill -9 -x limits")
	eventually(t, "the container begins again", func() error {
		if n := strings.Count(sh(t, node, log), "stdout F high "); n <= begun {
			return fmt.Errorf("it has begun %d times", n)
		}
		return nil
	})
	// Its first start was before the agent's.
	if all := printed(t, node, "stay", "app", begun+1); all[len(all)-1] != want {
		t.Errorf("stay/app began with %q, want %q", all[len(all)-1], want)
	}

	if err := agent.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	before := kernelValues(t, node)
	const class = "/sys/fs/cgroup/kubepods.slice/kubepods-burstable.slice/memory.min"
	sum := strings.TrimSpace(sh(t, node, "cat "+class))
	if sum == "0" {
		t.Error("the Burstable class has no memory.min that could be kept")
	}
	sh(t, node, "echo 0 > "+class) // as the kubelet's tick does
	if err := agent.Launch(t.Context()); err != nil {
		t.Fatal(err)
	}
	time.Sleep(15 * time.Second)
	eventually(t, "the sum of the Burstable class is kept", func() error {
		if got := strings.TrimSpace(sh(t, node, "cat "+class)); got != sum {
			return fmt.Errorf("memory.min is %s, want %s", got, sum)
		}
		return nil
	})
	if logged, err := agent.Log(t.Context()); err != nil || !strings.Contains(logged, "the API server has not told of this node's pods yet") {
		t.Errorf("the agent does not say that it waits (%v)", err)
	}
	// Containers go and come meanwhile; what stays is not touched.
	compared := 0
	for file, value := range kernelValues(t, node) {
		if was, ok := before[file]; ok {
			compared++
			if value != was {
				t.Errorf("an agent that starts without the API server changed %s from %s to %s", file, was, value)
			}
		}
	}
	if compared == 0 {
		t.Error("nothing stayed to be compared")
	}
	back()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	if err := agent.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	converged(t, node, agent)
}

// kernelValues are memory.min and memory.high of pods and containers by file, read
// without the API server. The classes are left out: systemd resets them at the
// kubelet's tick, and without pods their sums are not known.
func kernelValues(t *testing.T, node *testnode.Node) map[string]string {
	t.Helper()
	values := map[string]string{}
	out := sh(t, node, `cd /sys/fs/cgroup; for f in $(find . -path '*-pod*' \( -name memory.min -o -name memory.high \)); do echo $f $(cat $f 2>/dev/null); done`)
	for line := range strings.Lines(out) {
		if file, value, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
			values[file] = value
		}
	}
	return values
}

// testOwnCgroup: an agent that runs in a pod cannot write its own container's files,
// which are the root of its cgroup namespace (nsdelegate), and writes all others.
func testOwnCgroup(t *testing.T, node *testnode.Node, agent *nodeagent.Agent) {
	if err := agent.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := agent.Kill(t.Context()); err != nil {
			t.Fatal(err)
		}
		start(t, agent)
	}()
	dir := path.Join("/sys/fs/cgroup", cgroupOf(t, node, idOf(t, node, "default/stay", "second")))
	overwrite(t, node)
	if err := agent.LaunchIn(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all others have their values", func() error {
		s := takeSnapshot(t, node)
		if got := s["container default/stay/app"]["memory.high"]; got != high(26, 78) {
			return fmt.Errorf("memory.high of stay/app is %s", got)
		}
		if got := s["pod default/stay"]["memory.min"]; got != fmt.Sprint((26+28)<<20) {
			return fmt.Errorf("memory.min of stay is %s", got)
		}
		return nil
	})
	if got := takeSnapshot(t, node)["container default/stay/second"]["memory.high"]; got != "max" {
		t.Errorf("memory.high of the agent's own container is %s: it was written", got)
	}
	if n := metric(t, agent, "memqos_writes_total", map[string]string{"result": "failed"}); n != 0 {
		t.Errorf("%v writes failed, want 0", n)
	}
}
