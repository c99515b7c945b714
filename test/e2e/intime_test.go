//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/memqos/memqos/hack/nodeagent"
	"github.com/memqos/memqos/hack/testnode"
)

// intime says how much is to be measured: MEMQOS_STARTS container starts, and for a
// large number of them as many overwrites of each kind as make a distribution.
type intime struct {
	starts, overwrites int
	watched            time.Duration // for which the Burstable class is watched
	kills              int           // of the agent
	churn              int           // pods made and deleted quickly
	away               time.Duration // for which the API server is, before a container restarts
}

func intimeSize(t *testing.T) intime {
	t.Helper()
	switch n, err := strconv.Atoi(os.Getenv("MEMQOS_STARTS")); {
	case os.Getenv("MEMQOS_STARTS") == "":
		return intime{starts: 10, overwrites: 2, kills: 10, churn: 4}
	case err != nil:
		t.Fatalf("MEMQOS_STARTS: %v", err)
		return intime{}
	default:
		return intime{starts: n, overwrites: 20, watched: 5 * time.Minute, kills: 50, churn: 200, away: 10 * time.Minute}
	}
}

// A container's program finds its values when it begins, and what anybody writes
// over them is put right.
func TestInTime(t *testing.T) {
	size := intimeSize(t)
	for _, driver := range []string{"systemd", "cgroupfs"} {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			node := bareNode(t, testnode.Options{Kubernetes: "1.27.4", CgroupDriver: driver})
			agent := slowAgent(t, node)
			t.Run("starts", func(t *testing.T) { testStarts(t, node, agent, size) })
			t.Run("repair", func(t *testing.T) { testRepair(t, node, agent, driver, size) })
			if size.watched > 0 {
				t.Run("ticks", func(t *testing.T) { watchBurstable(t, node, agent, driver, size.watched) })
			}
			t.Run("blocked", func(t *testing.T) { testBlocked(t, node) })
		})
	}
}

// slowAgent is an agent without a full pass while a test lasts: what it does, it does
// because the kernel or the API server told it.
func slowAgent(t *testing.T, node *testnode.Node) *nodeagent.Agent {
	t.Helper()
	agent, err := nodeagent.Install(t.Context(), node, root, `
apiVersion: memqos.io/v1alpha1
kind: MemoryQoSConfiguration
resyncPeriod: 1h
`)
	if err != nil {
		t.Fatal(err)
	}
	start(t, agent)
	return agent
}

// started is a container whose program prints what it finds.
type started struct {
	name           string
	request, limit int64 // MiB
	argument       string
	starts         int
}

// startsPod is a pod of such containers, the first inits of them init containers.
func startsPod(pod string, inits int, annotations string, containers ...started) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "---\napiVersion: v1\nkind: Pod\nmetadata: {name: %s, namespace: default, annotations: {%s}}\nspec:\n  hostNetwork: true\n  terminationGracePeriodSeconds: 1\n", pod, annotations)
	for i, c := range containers {
		switch i {
		case 0:
			if inits > 0 {
				b.WriteString("  initContainers:\n")
			} else {
				b.WriteString("  containers:\n")
			}
		case inits:
			b.WriteString("  containers:\n")
		}
		fmt.Fprintf(&b, "  - {name: %s, image: %q, imagePullPolicy: Never, args: [%s], resources: {requests: {memory: %dMi}, limits: {memory: %dMi}}}\n",
			c.name, testnode.LimitsImage, c.argument, c.request, c.limit)
	}
	return []byte(b.String())
}

// high is memory.high by the default factor of 0.9.
func high(request, limit int64) string {
	r, l := float64(request<<20), float64(limit<<20)
	return strconv.FormatInt(int64(r+(l-r)*0.9)/4096*4096, 10)
}

// shapes are the pods of a round, eight starts together.
var shapes = []struct {
	name       string
	inits      int
	containers []started
}{
	{"single", 0, []started{{"app", 32, 64, "", 1}}},
	{"multi", 0, []started{{"one", 16, 48, "", 1}, {"two", 20, 60, "", 1}}},
	{"init", 2, []started{{"first", 10, 30, `"0"`, 1}, {"second", 12, 36, `"0"`, 1}, {"app", 14, 42, "", 1}}},
	{"restart", 0, []started{{"app", 18, 54, `"1"`, 2}}},
}

// testStarts: what a container's program reads first of all is what is wanted.
func testStarts(t *testing.T, node *testnode.Node, agent *nodeagent.Agent, size intime) {
	tr := startTrace(t, node)
	good, all := 0, 0
	for round := 0; all < size.starts; round++ {
		var manifests []byte
		for _, s := range shapes {
			manifests = append(manifests, startsPod(fmt.Sprintf("%s-%d", s.name, round), s.inits, "", s.containers...)...)
		}
		if err := node.Apply(t.Context(), manifests); err != nil {
			t.Fatal(err)
		}
		for _, s := range shapes {
			for _, c := range s.containers {
				pod := fmt.Sprintf("%s-%d", s.name, round)
				want := fmt.Sprintf("high %s min %d", high(c.request, c.limit), c.request<<20)
				for _, got := range printed(t, node, pod, c.name, c.starts) {
					all++
					if got == want {
						good++
					} else {
						t.Errorf("%s/%s began with %q, want %q", pod, c.name, got, want)
					}
				}
			}
		}
		if err := node.Delete(t.Context(), manifests); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d of %d containers began with their values", good, all)

	var first, last, slack, reset []time.Duration
	tr.read(t, node)
	begins := tr.begins("/limits")
	for _, b := range begins {
		if b.first == 0 {
			t.Errorf("memqos did not write %s before its program began", b.cgroup)
			continue
		}
		first = append(first, b.first-b.made)
		last = append(last, b.last-b.made)
		slack = append(slack, b.run-b.last)
		if b.reset > b.first {
			reset = append(reset, b.reset-b.made)
		}
	}
	if len(begins) < all {
		t.Errorf("the trace has %d starts, want at least %d", len(begins), all)
	}
	t.Logf("from the cgroup's creation to the first value: %s", spread(first))
	t.Logf("from the cgroup's creation to the last foreign write after that: %s", spread(reset))
	t.Logf("from the cgroup's creation to the value that stays: %s", spread(last))
	t.Logf("from that to the program's first instruction: %s", spread(slack))
	histogram, err := agent.Histogram(t.Context(), "memqos_time_to_value_seconds")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("memqos_time_to_value_seconds: %s", histogram)
}

// printed waits until a container has begun n times and returns what it printed
// each time.
func printed(t *testing.T, node *testnode.Node, pod, container string, n int) []string {
	t.Helper()
	var lines []string
	eventually(t, fmt.Sprintf("%s/%s has begun %d times", pod, container, n), func() error {
		out, err := node.Run(t.Context(), "sh", "-c", fmt.Sprintf("cat /var/log/pods/default_%s_*/%s/*.log", pod, container))
		if err != nil {
			return err
		}
		lines = nil
		for line := range strings.Lines(out) {
			if _, text, ok := strings.Cut(line, " stdout F "); ok {
				lines = append(lines, strings.TrimSpace(text))
			}
		}
		if len(lines) < n {
			return fmt.Errorf("%d times", len(lines))
		}
		return nil
	})
	return lines
}

var anyKubepods = regexp.MustCompile(`kubepods|burstable|besteffort|^pod|^cri-containerd|^[0-9a-f]{64}$`)

// testRepair: what is written over memqos's values, in each of the ways in which
// that happens, is put right.
func testRepair(t *testing.T, node *testnode.Node, agent *nodeagent.Agent, driver string, size intime) {
	const pods = 5
	var manifests []byte
	for i := range int64(pods) {
		manifests = append(manifests, startsPod(fmt.Sprintf("kept-%d", i), 0, "", started{"app", 24 + i, 72 + i, "", 1})...)
	}
	apply(t, node, manifests)
	eventually(t, "inspect is content", func() error { return settled(t, agent) })
	var dirs, ids []string
	for i := range pods {
		id := containerID(t, node, fmt.Sprintf("default/kept-%d", i))
		ids, dirs = append(ids, id), append(dirs, "/sys/fs/cgroup/"+cgroupOf(t, node, id))
	}
	want := takeSnapshot(t, node)

	kinds := []struct {
		name    string
		systemd bool                 // exists with that driver alone
		resets  bool                 // is known to overwrite something
		script  func(i int) string   // overwrites once
		pause   func() time.Duration // after that
	}{
		{name: "a human's echo", resets: true, script: func(i int) string {
			file, value := "memory.high", "max"
			if i%2 == 1 {
				file, value = "memory.min", "0"
			}
			return "echo " + value + " > " + dirs[i/2%pods] + "/" + file
		}},
		{name: "systemctl daemon-reload", systemd: true, script: func(int) string { return "systemctl daemon-reload" }},
		{name: "systemctl daemon-reexec", systemd: true, script: func(int) string { return "systemctl daemon-reexec" }},
		{name: "set-property on a sibling", systemd: true, script: func(i int) string {
			return fmt.Sprintf("systemctl set-property --runtime $(basename $(dirname %s)) CPUWeight=%d", dirs[i%pods], 50+i)
		}},
		{name: "set-property on the scope", systemd: true, resets: true, script: func(i int) string {
			return fmt.Sprintf("systemctl set-property --runtime $(basename %s) CPUWeight=%d", dirs[i%pods], 50+i)
		}},
		{name: "runc update", resets: driver == "systemd", script: func(i int) string {
			return fmt.Sprintf("runc --root /run/containerd/runc/k8s.io update --cpu-share %d %s", 64+i, ids[i%pods])
		}},
		{name: "kubelet restart", systemd: true, script: func(int) string { return "systemctl restart kubelet; sleep 5" }},
	}
	for _, k := range kinds {
		if k.systemd && driver != "systemd" {
			continue
		}
		var before map[string]float64
		var tr *trace
		counted := map[string]float64{}
		for i := range size.overwrites {
			// To overwrite the same file again and again is a fight, which memqos gives up:
			// an agent that has just started knows of none.
			if i%contestFree == 0 {
				restart(t, agent)
				before = repairs(t, agent)
			}
			if i == 0 {
				tr = startTrace(t, node)
			}
			sh(t, node, k.script(i))
			time.Sleep(200 * time.Millisecond)
			if i%contestFree == contestFree-1 || i == size.overwrites-1 {
				if err := eventual(t, func() error { return same(differences(want, takeSnapshot(t, node))) }); err != nil {
					t.Errorf("after %s: %v", k.name, err)
				}
				for cause, n := range repairs(t, agent) {
					counted[cause] += n - before[cause]
				}
			}
		}
		tr.read(t, node)
		report(t, k.name, tr, k.resets, counted)
	}
	if err := node.Delete(t.Context(), manifests); err != nil {
		t.Fatal(err)
	}
}

// contestFree is less often than what memqos takes for a fight (controllers/contest.go).
const contestFree = 8

func restart(t *testing.T, agent *nodeagent.Agent) {
	t.Helper()
	if err := agent.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	start(t, agent)
}

// report says how long values were wrong.
func report(t *testing.T, name string, tr *trace, resets bool, counted map[string]float64) {
	t.Helper()
	var took []time.Duration
	by := map[string]int{}
	for _, w := range tr.wrongs(anyKubepods) {
		by[w.by+" "+w.file+"="+w.value]++
		if w.to == 0 {
			// Within the test's patience the values are right again: what is open here was
			// removed with its cgroup, or put right by a write of the same value.
			continue
		}
		took = append(took, w.to-w.from)
	}
	if resets && len(took) == 0 {
		t.Errorf("%s: nothing was overwritten: the test tests nothing", name)
	}
	t.Logf("%s: wrong for %s; %v; repairs by cause: reset %v, foreign %v", name, spread(took), by, counted["reset"], counted["foreign"])
}

func repairs(t *testing.T, agent *nodeagent.Agent) map[string]float64 {
	t.Helper()
	out := map[string]float64{}
	for _, cause := range []string{"reset", "foreign"} {
		out[cause], _ = agent.Metric(t.Context(), "memqos_repairs_total", map[string]string{"cause": cause}) // no series yet: 0
	}
	return out
}

// watchBurstable measures the share of time in which memory.min of the Burstable
// class was wrong, while the kubelet ticks.
func watchBurstable(t *testing.T, node *testnode.Node, agent *nodeagent.Agent, driver string, d time.Duration) {
	kept := startsPod("ticked", 0, "", started{"app", 24, 72, "", 1}, started{"other", 20, 60, "", 1})
	apply(t, node, kept)
	eventually(t, "inspect is content", func() error { return settled(t, agent) })
	restart(t, agent)           // knows of no fight
	time.Sleep(time.Minute / 2) // what the pod's start has set off is over
	class := regexp.MustCompile(`^(kubepods-burstable\.slice|burstable)$`)
	before := repairs(t, agent)
	tr := startTrace(t, node)
	time.Sleep(d)
	tr.read(t, node)
	var sum time.Duration
	var took []time.Duration
	for _, w := range tr.wrongs(class) {
		if w.file == "memory.min" && w.to > 0 {
			sum += w.to - w.from
			took = append(took, w.to-w.from)
		}
	}
	ticks := 0
	for _, e := range tr.events {
		if e.kind == "write" && !e.ours() && e.file == "memory.min" && class.MatchString(e.cgroup) {
			ticks++
		}
	}
	if driver == "systemd" && ticks == 0 {
		t.Errorf("systemd wrote no memory.min of the Burstable class in %v: the test tests nothing", d)
	}
	t.Logf("memory.min of the Burstable class over %v: %d foreign writes, wrong for %v in sum, %.5f %% of the time; each: %s",
		d, ticks, sum, 100*float64(sum)/float64(d), spread(took))
	after := repairs(t, agent)
	report(t, "the kubelet's ticks", tr, false, map[string]float64{"reset": after["reset"] - before["reset"], "foreign": after["foreign"] - before["foreign"]})
}

// eventual is eventually that returns the error.
func eventual(t *testing.T, check func() error) error {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		err := check()
		if err == nil || time.Now().After(deadline) || t.Context().Err() != nil {
			return err
		}
		time.Sleep(500 * time.Millisecond)
	}
}

const hog = `---
apiVersion: v1
kind: Pod
metadata: {name: hog, namespace: default}
spec:
  hostNetwork: true
  terminationGracePeriodSeconds: 1
  containers:
  - {name: anonymous, image: "` + testnode.WorkloadImage + `", imagePullPolicy: Never, args: [hot, 400Mi], resources: {requests: {memory: 16Mi}, limits: {memory: 900Mi}}}
  - {name: cache, image: "` + testnode.WorkloadImage + `", imagePullPolicy: Never, args: [cache, /tmp/file, 400Mi], resources: {requests: {memory: 16Mi}, limits: {memory: 900Mi}}}
`

// testBlocked: memory.high falls far below what a busy container uses, and
// meanwhile another pod begins, with its values.
func testBlocked(t *testing.T, node *testnode.Node) {
	apply(t, node, []byte(hog))
	defer func() {
		if err := node.Delete(t.Context(), []byte(hog)); err != nil {
			t.Error(err)
		}
	}()
	eventually(t, "both containers use 400 MiB", func() error {
		for _, container := range []string{"anonymous", "cache"} {
			dir := cgroupOf(t, node, idOf(t, node, "default/hog", container))
			used, err := strconv.Atoi(strings.TrimSpace(sh(t, node, "cat /sys/fs/cgroup/"+dir+"/memory.current")))
			if err != nil {
				return err
			}
			if used < 400<<20 {
				return fmt.Errorf("%s uses %d MiB", container, used>>20)
			}
		}
		return nil
	})
	tr := startTrace(t, node)
	want := fmt.Sprintf("high %s min %d", high(22, 66), 22<<20)
	lowered := 0
	for i := range 3 {
		pod := fmt.Sprintf("beside-hog-%d", i)
		manifest := startsPod(pod, 0, "", started{"app", 22, 66, "", 1})
		if err := node.Apply(t.Context(), manifest); err != nil {
			t.Fatal(err)
		}
		// While it starts, memory.high of the hog goes from 811 MiB to 60, to and fro.
		for logged := ""; !strings.Contains(logged, "high "); {
			setFactor(t, node, "hog", "0.05")
			lowered++
			time.Sleep(500 * time.Millisecond)
			setFactor(t, node, "hog", "0.9")
			logged, _ = node.Run(t.Context(), "sh", "-c", "cat /var/log/pods/default_"+pod+"_*/app/*.log") // fails until there is one
		}
		if got := printed(t, node, pod, "app", 1); !slices.Equal(got, []string{want}) {
			t.Errorf("%s began with %q, want %q", pod, got, want)
		}
		if err := node.Delete(t.Context(), manifest); err != nil {
			t.Fatal(err)
		}
	}
	tr.read(t, node)
	t.Logf("memory.high was lowered %d times; each of memqos's writes of a memory.high took: %s", lowered, spread(tr.highWrites()))
	var last []time.Duration
	for _, b := range tr.begins("/limits") {
		last = append(last, b.last-b.made)
	}
	t.Logf("meanwhile, from a cgroup's creation to the value that stays: %s", spread(last))
}

func setFactor(t *testing.T, node *testnode.Node, pod, factor string) {
	t.Helper()
	patch := fmt.Appendf(nil, `{"metadata":{"annotations":{"memqos.io/memory-throttling-factor":%q}}}`, factor)
	if _, err := clientset(t, node).CoreV1().Pods("default").Patch(t.Context(), pod, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
}

// highWrites is how long each write of memory.high by memqos took.
func (tr *trace) highWrites() []time.Duration {
	began := map[int]time.Duration{}
	var took []time.Duration
	for _, e := range tr.events {
		switch {
		case e.kind == "write" && e.file == "memory.high" && e.ours():
			began[e.pid] = e.at
		case e.kind == "wrote" && began[e.pid] != 0:
			took = append(took, e.at-began[e.pid])
			delete(began, e.pid)
		}
	}
	return took
}

// idOf returns the id of a pod's container, if that runs.
func idOf(t *testing.T, node *testnode.Node, pod, container string) string {
	t.Helper()
	p := findPod(listPods(t, node), pod)
	if p == nil {
		return ""
	}
	for _, s := range p.Status.ContainerStatuses {
		if s.Name == container && s.State.Running != nil {
			_, id, _ := strings.Cut(s.ContainerID, "://")
			return id
		}
	}
	return ""
}
