//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/memqos/memqos/hack/nodeagent"
	"github.com/memqos/memqos/hack/testnode"
)

// burstablePod is a pod of one container with a request and no limit.
func burstablePod(name, request string, args ...string) []byte {
	return []byte(strings.Replace(string(workloadPod(name, request, request, args...)),
		", limits: {cpu: 1m, memory: "+request+"}}", "}", 1))
}

func bestEffortPod(name string, args ...string) []byte {
	return []byte(strings.Replace(string(workloadPod(name, "1", "1", args...)),
		"resources: {requests: {cpu: 1m, memory: 1}, limits: {cpu: 1m, memory: 1}}", "resources: {}", 1))
}

func meminfo(t *testing.T, node *testnode.Node, field string) int64 {
	t.Helper()
	kib, err := strconv.ParseInt(strings.TrimSpace(sh(t, node, "sed -n 's/^"+field+": *\\([0-9]*\\) kB/\\1/p' /proc/meminfo")), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return kib << 10
}

// underPressure is how a pod fares beside others that use up the node.
type underPressure struct {
	Of                       string
	Passes                   int
	MajorFaults              int64
	MedianPassMs, MaxPassMs  int64
	MemoryMin, LeastInMemory int64 // bytes; that of memory.current
}

var passLine = regexp.MustCompile(`pass \d+ took (\d+) ms and (\d+) major faults`)

// squeeze: a victim has something to do every 15 s: it looks at the pages of a file of
// 100 MiB. Then one neighbour takes all but 250 MiB of the node, and another one looks at
// those of 300 MiB without a pause. What is told is what the victim met from then on.
func squeeze(t *testing.T, node *testnode.Node, of string, plot *series) underPressure {
	t.Helper()
	const file, room, d = 100 << 20, 250 << 20, 150 * time.Second
	victim := burstablePod("victim", "128Mi", "map", "/tmp/data", "100Mi", "15s")
	apply(t, node, victim)
	log := func() [][]string {
		return passLine.FindAllStringSubmatch(sh(t, node, "cat /var/log/pods/default_victim_*/app/*.log"), -1)
	}
	eventually(t, "the victim has its working set", func() error {
		if n := len(log()); n < 3 {
			return fmt.Errorf("it has made %d passes", n)
		}
		return nil
	})
	hog := bestEffortPod("hog", "alloc", fmt.Sprint((meminfo(t, node, "MemAvailable")-room)>>20<<20))
	apply(t, node, hog)
	eventually(t, "the hog has what it wants", func() error {
		if n := meminfo(t, node, "MemAvailable"); n > room+(20<<20) {
			return fmt.Errorf("%d bytes are available", n)
		}
		return nil
	})
	reader := bestEffortPod("reader", "map", "/tmp/data", "300Mi", "0s")
	apply(t, node, reader)
	eventually(t, "the reader reads", func() error {
		if !strings.Contains(sh(t, node, "cat /var/log/pods/default_reader_*/app/*.log"), "wrote") {
			return fmt.Errorf("it still writes its file")
		}
		return nil
	})
	dir := "/sys/fs/cgroup/" + cgroupOf(t, node, containerID(t, node, "default/victim"))
	number := func(script string) int64 {
		n, err := strconv.ParseInt(strings.TrimSpace(sh(t, node, "cd "+dir+"; "+script)), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	u := underPressure{Of: of, MemoryMin: number("cat memory.min"), LeastInMemory: file}
	const majorFaults = "sed -n 's/^pgmajfault //p' memory.stat"
	first, before, begin := len(log()), number(majorFaults), time.Now()
	for time.Since(begin) < d {
		u.LeastInMemory = min(u.LeastInMemory, number("cat memory.current"))
		time.Sleep(3 * time.Second)
	}
	u.MajorFaults = number(majorFaults) - before
	var took []int64
	for i, pass := range log()[first:] {
		ms, _ := strconv.ParseInt(pass[1], 10, 64)
		faults, _ := strconv.ParseFloat(pass[2], 64)
		took = append(took, ms)
		plot.add(of, float64(i), faults)
	}
	if u.Passes = len(took); u.Passes > 0 {
		slices.Sort(took)
		u.MedianPassMs, u.MaxPassMs = took[len(took)/2], took[len(took)-1]
	}
	for _, manifest := range [][]byte{reader, hog, victim} {
		if err := node.Delete(t.Context(), manifest); err != nil {
			t.Fatal(err)
		}
	}
	return u
}

// The program whose request is its working set keeps it, whatever the neighbours do: with
// memqos as with the kubelet's own MemoryQoS, and not without.
func TestSafetyProtection(t *testing.T) {
	t.Parallel()
	noEviction := map[string]any{"evictionHard": map[string]any{"memory.available": "1Mi"}}
	plot := newSeries("Major faults of a program beside two that use up the node", "pass over its 100 MiB", "major faults")
	node := bareNode(t, testnode.Options{Kubernetes: "1.27.4", CgroupDriver: "systemd", KubeletConfig: noEviction})
	without := squeeze(t, node, "without", plot)
	installAgent(t, node, "")
	with := squeeze(t, node, "memqos", plot)
	if err := node.Stop(); err != nil {
		t.Fatal(err)
	}
	gateOn := bareNode(t, testnode.Options{Kubernetes: "1.27.4", CgroupDriver: "systemd", KubeletConfig: noEviction, FeatureGates: map[string]bool{"MemoryQoS": true}})
	kubelet := squeeze(t, gateOn, "kubelet, gate on", plot)
	plot.save(t, "protection")
	figures(t, "protection", []underPressure{without, with, kubelet})
	if without.MajorFaults < 1000 {
		t.Errorf("%d major faults without protection: there was no pressure", without.MajorFaults)
	}
	if with.Passes == 0 || with.MajorFaults*10 > without.MajorFaults {
		t.Errorf("%d major faults in %d passes with memqos, %d without", with.MajorFaults, with.Passes, without.MajorFaults)
	}
}

// railed is how the system's own services fare beside a pod whose request is all of
// the node.
type railed struct {
	Of            string
	KubepodsMin   int64 // bytes
	Answered      int   // probes of a program that the system starts
	Probes        int
	MedianProbeMs int64 // of the answered
	SystemMajor   int64 // major faults of system.slice meanwhile; -1: the node does not say
	SystemFile    int64 // bytes of files that system.slice has in memory at the end; -1: likewise
	OOMKills      int64 // of the node; -1: likewise
	PodsInMemory  int64 // bytes, at the end; -1: likewise
}

// lives reports whether the system answered all the time, and nothing was killed.
func (r railed) lives() bool { return r.Answered == r.Probes && r.OOMKills == 0 }

// A pod whose request is as good as all of the node reads files up to it. The system's
// services keep what they need if the rail holds kubepods' protection below, and not
// without it, be it memqos or the kubelet that protects.
func TestSafetyRail(t *testing.T) {
	t.Parallel()
	config := func(reserve string) string { return safetyConfig + "rails: {systemReserve: " + reserve + "}\n" }
	// memqos has a node with the first reserve, and changes to the others while the pod reads.
	memqos := func(reserves ...string) (out []railed) {
		node := greedyNode(t, false)
		agent, err := nodeagent.Install(t.Context(), node, root, config(reserves[0]))
		if err != nil {
			t.Fatal(err)
		}
		start(t, agent)
		readAll(t, node)
		for _, reserve := range reserves {
			if err := agent.Configure(t.Context(), config(reserve)); err != nil {
				t.Fatal(err)
			}
			out = append(out, fare(t, node, "memqos, systemReserve "+reserve))
		}
		if err := node.Stop(); err != nil {
			t.Fatal(err)
		}
		return out
	}
	all := memqos("512Mi", "100Mi") // what comes last may be the node's end
	all = append(all, memqos("0")...)
	gateOn := greedyNode(t, true)
	readAll(t, gateOn)
	all = append(all, fare(t, gateOn, "kubelet, gate on"))
	figures(t, "rail", all)
	if !all[0].lives() {
		t.Errorf("with the rail the system does not live: %+v", all[0])
	}
	for _, r := range all[2:] {
		if r.lives() && r.SystemMajor <= 2*all[0].SystemMajor {
			t.Errorf("without the rail the system lives as with it: there was no pressure: %+v", r)
		}
	}
}

// greedyNode is a small node on which nothing is reserved, as kubeadm leaves it.
func greedyNode(t *testing.T, memoryQoS bool) *testnode.Node {
	t.Helper()
	none := map[string]any{"memory": "0"}
	return bareNode(t, testnode.Options{
		Kubernetes: "1.27.4", CgroupDriver: "systemd", MemoryMiB: 1536, FeatureGates: map[string]bool{"MemoryQoS": memoryQoS},
		KubeletConfig: map[string]any{"evictionHard": map[string]any{"memory.available": "1Mi"}, "systemReserved": none, "kubeReserved": none},
	})
}

// readAll makes a pod whose request is the node, and which reads a file as large.
func readAll(t *testing.T, node *testnode.Node) {
	t.Helper()
	total := meminfo(t, node, "MemTotal")
	pod := burstablePod("everything", fmt.Sprint((total-(24<<20))>>20<<20), "cache", "/tmp/data", fmt.Sprint((total-(64<<20))>>20<<20))
	if err := node.Apply(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	if err := node.WaitRunning(ctx, pod); err != nil {
		t.Logf("the node does not get to say that the pod runs: %v", err)
	}
}

// fare looks for a while how the system fares, from a minute from now on.
func fare(t *testing.T, node *testnode.Node, of string) railed {
	t.Helper()
	time.Sleep(60 * time.Second) // memqos looks every 2 s, and the pod reads meanwhile
	type state struct{ major, file, minimum, pods, kills int64 }
	look := func() state {
		s := state{-1, -1, -1, -1, -1}
		out, err := probe(t, node, 2*time.Minute, `
			sed -n 's/^pgmajfault //p' /sys/fs/cgroup/system.slice/memory.stat
			sed -n 's/^file //p' /sys/fs/cgroup/system.slice/memory.stat
			cat /sys/fs/cgroup/kubepods.slice/memory.min /sys/fs/cgroup/kubepods.slice/memory.current
			sed -n 's/^oom_kill //p' /proc/vmstat`)
		if err == nil {
			_, err = fmt.Sscan(out, &s.major, &s.file, &s.minimum, &s.pods, &s.kills)
		}
		if err != nil {
			t.Logf("%s: the node does not answer in 2 minutes: %v", of, err)
		}
		return s
	}
	before := look()
	r := railed{Of: of, KubepodsMin: before.minimum}
	var took []int64
	for range 15 {
		r.Probes++
		begin := time.Now()
		if _, err := probe(t, node, 20*time.Second, "systemctl is-active containerd && ctr version"); err != nil {
			t.Logf("%s: probe %d: %v", of, r.Probes, err)
			continue
		}
		r.Answered++
		took = append(took, time.Since(begin).Milliseconds())
		time.Sleep(2 * time.Second)
	}
	if slices.Sort(took); len(took) > 0 {
		r.MedianProbeMs = took[len(took)/2]
	}
	after := look()
	r.SystemFile, r.PodsInMemory, r.SystemMajor, r.OOMKills = after.file, after.pods, -1, -1
	if before.major >= 0 && after.major >= 0 {
		r.SystemMajor, r.OOMKills = after.major-before.major, after.kills-before.kills
	}
	t.Logf("%+v", r)
	return r
}

// probe runs a script that may never end on a node that has no memory.
func probe(t *testing.T, node *testnode.Node, within time.Duration, script string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	return node.Run(ctx, "sh", "-c", script)
}
