//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/memqos/memqos/hack/nodeagent"
	"github.com/memqos/memqos/hack/testnode"
)

// safety says how much of each experiment is run; make e2e-safety asks for all.
type safety struct {
	stalls, configurations, kills, landing int
	calm                                   time.Duration
}

func safetySize() safety {
	if os.Getenv("MEMQOS_SAFETY") == "" {
		return safety{stalls: 1, configurations: 10, kills: 3, landing: 4, calm: 20 * time.Second}
	}
	return safety{stalls: 10, configurations: 100, kills: 20, landing: 20, calm: 10 * time.Minute}
}

// figures writes what an experiment has measured to _artifacts/safety, for docs/safety.md.
func figures(t *testing.T, name string, v any) {
	t.Helper()
	data, err := json.MarshalIndent(v, "", "  ")
	if err == nil {
		t.Logf("%s: %s", name, data)
		err = artifact(name+".json", append(data, '\n'))
	}
	if err != nil {
		t.Error(err)
	}
}

func artifact(name string, data []byte) error {
	file := filepath.Join(root, "_artifacts", "safety", name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return os.WriteFile(file, data, 0o644)
}

// series are the lines of a plot, as a CSV that hack/plot reads.
type series struct{ b strings.Builder }

func newSeries(title, x, y string) *series {
	s := &series{}
	fmt.Fprintf(&s.b, "# title: %s\n# x: %s\n# y: %s\nseries,x,y\n", title, x, y)
	return s
}

func (s *series) add(name string, x, y float64) { fmt.Fprintf(&s.b, "%s,%.2f,%.2f\n", name, x, y) }

func (s *series) save(t *testing.T, name string) {
	t.Helper()
	if err := artifact(name+".csv", []byte(s.b.String())); err != nil {
		t.Error(err)
	}
}

// workloadPod is a pod of one container that runs the workload once.
func workloadPod(name, request, limit string, args ...string) []byte {
	return fmt.Appendf(nil, `---
apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: default}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  hostNetwork: true
  containers:
  - name: app
    image: docker.io/memqos/workload:test
    imagePullPolicy: Never
    args: ["%s"]
    resources: {requests: {cpu: 1m, memory: %s}, limits: {cpu: 1m, memory: %s}}
`, name, strings.Join(args, `", "`), request, limit)
}

// writable are all files memory.* of all cgroups at and beneath kubepods that are
// settings: they can be written and read.
func writable(t *testing.T, node *testnode.Node) map[string]string {
	t.Helper()
	all := map[string]string{}
	out := sh(t, node, `cd /sys/fs/cgroup; find kubepods* -name 'memory.*' ! -name memory.pressure -perm -u+rw -exec grep -H . {} +`)
	for line := range strings.Lines(out) {
		if file, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			all[file] = value
		}
	}
	return all
}

// changed are the files of both with another value, and those that want alone has.
func changed(want, got map[string]string) []string {
	var diff []string
	for file, value := range want {
		if got[file] != value {
			diff = append(diff, fmt.Sprintf("%s is %q, want %q", file, got[file], value))
		}
	}
	slices.Sort(diff)
	return diff
}

const safetyConfig = `
apiVersion: memqos.io/v1alpha1
kind: MemoryQoSConfiguration
resyncPeriod: 15s
`

// What memqos does so that no workload is worse off with it, on one node.
func TestSafety(t *testing.T) {
	t.Parallel()
	size := safetySize()
	node := bareNode(t, testnode.Options{
		Kubernetes: "1.27.4", CgroupDriver: "systemd",
		KubeletConfig: map[string]any{"evictionHard": map[string]any{"memory.available": "1Mi"}}, // an eviction is no OOM kill
	})
	apply(t, node, startsPod("stay", 0, "", started{"app", 26, 78, "", 1}, started{"second", 28, 84, "", 1}))
	before := writable(t, node)
	config := safetyConfig + fmt.Sprintf("memoryThrottlingFactor: %v\n", stallFactor)
	agent, err := nodeagent.Install(t.Context(), node, root, config)
	if err != nil {
		t.Fatal(err)
	}
	start(t, agent)
	t.Run("page cache", func(t *testing.T) { testPageCache(t, node, agent, config) })
	t.Run("killed", func(t *testing.T) { testOOM(t, node) })
	t.Run("way back", func(t *testing.T) { testWayBack(t, node, agent, size, before, config) })
	t.Run("stall", func(t *testing.T) { testStalls(t, node, agent, size) })
	t.Run("landing", func(t *testing.T) { testLanding(t, node, agent, size, config) })
	t.Run("reload", func(t *testing.T) { testReload(t, node, agent, size, config) })
	t.Run("calm", func(t *testing.T) { testCalm(t, node, agent, size) })
}

// testPageCache: a Guaranteed pod that writes more files than its limit is killed where
// its memory.min is its memory.max (kubernetes#126485), and is not with memqos's default.
func testPageCache(t *testing.T, node *testnode.Node, agent *nodeagent.Agent, config string) {
	type run struct {
		Of       string // who set memory.min
		Min, Max int64
		Killed   bool
	}
	var runs []run
	const limit = 64 << 20
	once := func(of, annotations string, set func(dir string)) {
		name := fmt.Sprintf("writer-%d", len(runs))
		manifest := workloadPod(name, "64Mi", "64Mi", "later", "/tmp/go", "256Mi")
		manifest = []byte(strings.Replace(string(manifest), "namespace: default", "namespace: default, annotations: {"+annotations+"}", 1))
		apply(t, node, manifest)
		dir := "/sys/fs/cgroup/" + cgroupOf(t, node, containerID(t, node, "default/"+name))
		set(dir)
		value := func(file string) int64 {
			n, err := strconv.ParseInt(strings.TrimSpace(sh(t, node, "cat "+dir+"/"+file)), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		eventually(t, "the container is protected", func() error {
			if value("memory.min") == 0 {
				return fmt.Errorf("memory.min is 0")
			}
			return nil
		})
		r := run{Of: of, Min: value("memory.min"), Max: value("memory.max")}
		sh(t, node, "touch /proc/$(head -n 1 "+dir+"/cgroup.procs)/root/tmp/go")
		eventually(t, "the file is written, or the program is killed", func() error {
			ended := terminated(t, node, name)
			r.Killed = ended != "Completed" // the runtime does not always see why
			if ended == "" {
				return fmt.Errorf("it runs")
			}
			return nil
		})
		runs = append(runs, r)
		if err := node.Delete(t.Context(), manifest); err != nil {
			t.Fatal(err)
		}
	}
	for _, left := range []int64{0, 256 << 10, 512 << 10, 1 << 20, 2 << 20} {
		once(fmt.Sprintf("by hand, memory.max less %d", left), `"memqos.io/keep": memory.min`, func(dir string) {
			// A page more than the pod requests: to the byte it would pass for a kubelet's.
			sh(t, node, fmt.Sprintf("echo %d > %s/memory.min; echo %d > %s/memory.min", limit+4096, path.Dir(dir), limit-left, dir))
		})
	}
	once("memqos", "", func(string) {})
	if err := agent.Configure(t.Context(), config+"rails: {reclaimMargin: 0}\n"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(4 * time.Second) // it looks every 2 s
	once("memqos, reclaimMargin 0", "", func(string) {})
	if err := agent.Configure(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	figures(t, "page-cache", map[string]any{"Kernel": strings.TrimSpace(sh(t, node, "uname -r")), "Runs": runs})
	if !runs[0].Killed || !runs[len(runs)-1].Killed {
		t.Error("not killed with the kubelet's memory.min: this kernel does not have the fault")
	}
	if runs[len(runs)-2].Killed {
		t.Error("killed with the rail")
	}
}

// terminated returns why a pod's first container has ended, "" while it runs.
func terminated(t *testing.T, node *testnode.Node, pod string) string {
	t.Helper()
	p := findPod(listPods(t, node), "default/"+pod)
	if p == nil || len(p.Status.ContainerStatuses) == 0 || p.Status.ContainerStatuses[0].State.Terminated == nil {
		return ""
	}
	return p.Status.ContainerStatuses[0].State.Terminated.Reason
}

// A pod whose init container leaves 50Mi in a volume in memory: they stay charged to
// the pod, and no container of it.
func tmpfsPod(name string) []byte {
	return fmt.Appendf(nil, `---
apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: default}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  hostNetwork: true
  volumes:
  - {name: mem, emptyDir: {medium: Memory}}
  initContainers:
  - name: init
    image: docker.io/memqos/workload:test
    imagePullPolicy: Never
    args: [fill, /mem/data, 50Mi]
    volumeMounts: [{name: mem, mountPath: /mem}]
    resources: {requests: {cpu: 1m, memory: 84Mi}, limits: {cpu: 1m, memory: 84Mi}}
  containers:
  - name: app
    image: docker.io/memqos/workload:test
    imagePullPolicy: Never
    args: [await, /mem/go, 60Mi]
    volumeMounts: [{name: mem, mountPath: /mem}]
    resources: {requests: {cpu: 1m, memory: 64Mi}, limits: {cpu: 1m, memory: 64Mi}}
  - name: other
    image: docker.io/memqos/workload:test
    imagePullPolicy: Never
    args: [sleep]
    volumeMounts: [{name: mem, mountPath: /mem}]
    resources: {requests: {cpu: 1m, memory: 20Mi}, limits: {cpu: 1m, memory: 20Mi}}
`, name)
}

var oomLine = regexp.MustCompile(`oom-kill:constraint=(\w+),.*?(?:oom_memcg=([^,]*),)?task_memcg=([^,]*),task=([^,]*)`)

// testOOM: real kills, and what memqos says of each. The kernel's own word is its log.
func testOOM(t *testing.T, node *testnode.Node) {
	type kill struct {
		Pod, Event, Message string
		Kernel              []string
	}
	var kills []kill
	one := func(pod string, want []string, kernelSays string, provoke func()) {
		t.Helper()
		sh(t, node, "dmesg -C")
		provoke()
		k := kill{Pod: pod}
		eventually(t, "an event OutOfMemory on "+pod, func() error {
			list, err := clientset(t, node).CoreV1().Events("").List(t.Context(), metav1.ListOptions{})
			if err != nil {
				return err
			}
			for _, e := range list.Items {
				if e.InvolvedObject.Name == pod && strings.HasPrefix(e.Reason, "OutOfMemory") {
					k.Event, k.Message = e.Reason, e.Message
					return nil
				}
			}
			return fmt.Errorf("none")
		})
		for _, m := range oomLine.FindAllStringSubmatch(sh(t, node, "dmesg"), -1) {
			k.Kernel = append(k.Kernel, fmt.Sprintf("%s %s %s", m[1], path.Base(m[2]), m[4]))
		}
		kills = append(kills, k)
		if !slices.Contains(want, k.Event) {
			t.Errorf("%s: event %s, want one of %v; the kernel: %v", pod, k.Event, want, k.Kernel)
		}
		if !strings.Contains(strings.Join(k.Kernel, "; "), kernelSays) {
			t.Errorf("%s: the kernel says %v, want %s: this is no such kill", pod, k.Kernel, kernelSays)
		}
	}
	trigger := func(pod, dir string) {
		cgroup := cgroupOf(t, node, containerID(t, node, "default/"+pod))
		time.Sleep(2 * time.Second) // until memqos knows the pod
		sh(t, node, "touch /proc/$(head -n 1 /sys/fs/cgroup/"+cgroup+"/cgroup.procs)/root"+dir+"/go")
	}
	one("oom-container", []string{"OutOfMemoryContainerLimit"}, "CONSTRAINT_MEMCG cri-containerd-", func() {
		// A pod of one container reaches the pod's limit first, which the sandbox is charged to.
		_, idle, _ := strings.Cut(string(workloadPod("idle", "20Mi", "20Mi", "sleep")), "containers:\n")
		manifest := append(workloadPod("oom-container", "40Mi", "40Mi", "await", "/tmp/go", "100Mi"), strings.Replace(idle, "name: app", "name: idle", 1)...)
		apply(t, node, manifest)
		trigger("oom-container", "/tmp")
	})
	one("oom-pod", []string{"OutOfMemoryPodLimit"}, "CONSTRAINT_MEMCG kubepods-pod", func() {
		apply(t, node, tmpfsPod("oom-pod"))
		trigger("oom-pod", "/mem")
	})
	one("oom-group", []string{"OutOfMemoryGroupKill"}, "CONSTRAINT_MEMCG kubepods-pod", func() {
		apply(t, node, tmpfsPod("oom-group"))
		dir := cgroupOf(t, node, containerID(t, node, "default/oom-group"))
		sh(t, node, "echo 1 > /sys/fs/cgroup/"+path.Dir(dir)+"/memory.oom.group")
		trigger("oom-group", "/mem")
	})
	// Node allocatable leaves the system less than it uses here: the node runs out first.
	one("oom-node", []string{"OutOfMemoryNodeOutOfMemory"}, "CONSTRAINT_NONE", func() {
		manifest := strings.Replace(string(bestEffortPod("oom-node", "await", "/tmp/go", "3000Mi")), "namespace: default", `namespace: default, annotations: {"memqos.io/memory-high": disabled}`, 1)
		apply(t, node, []byte(manifest))
		trigger("oom-node", "/tmp")
		eventually(t, "the kernel kills", func() error {
			if !oomLine.MatchString(sh(t, node, "dmesg")) {
				return fmt.Errorf("not yet")
			}
			return nil
		})
	})
	figures(t, "oom", kills)
	// Each container that died is told of once, and nothing else: no sandbox, no second
	// process, nothing of a pod that is gone.
	list, err := clientset(t, node).CoreV1().Events("").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	told := map[string]int{}
	for _, e := range list.Items {
		if strings.HasPrefix(e.Reason, "OutOfMemory") {
			who, _, _ := strings.Cut(e.Message, ": ")
			told[e.InvolvedObject.Name+" "+who] += int(max(e.Count, 1))
		}
	}
	want := map[string]int{"oom-container container app": 1, "oom-pod container app": 1, "oom-group container app": 1, "oom-group container other": 1, "oom-node container app": 1}
	if diff := cmp.Diff(want, told); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	for _, pod := range []string{"oom-container", "oom-pod", "oom-group", "oom-node"} {
		if err := node.Delete(t.Context(), workloadPod(pod, "1", "1")); err != nil {
			t.Error(err)
		}
	}
}

// testReload: configurations in a row, good and bad, while pods come and go.
func testReload(t *testing.T, node *testnode.Node, agent *nodeagent.Agent, size safety, config string) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- churning(ctx, node) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	pid := func() string { return sh(t, node, "pidof memqos") }
	agentPID := pid()
	plot := newSeries("Factor of the running configuration, by memory.high in the kernel", "configuration", "throttling factor")
	valid, refused, checks := 0, 0, 0
	want := throttled(26<<20, 78<<20, stallFactor)
	for i := range size.configurations {
		c := ""
		if rand.IntN(2) == 0 {
			factor := float64(30+rand.IntN(65)) / 100
			c = safetyConfig + fmt.Sprintf("memoryThrottlingFactor: %v\n", factor)
			want = throttled(26<<20, 78<<20, factor)
			valid++
		} else {
			bad := []string{
				"", "{", "memoryThrottlingFactor: 1.5\n", config + "memoryThrottlingFactor: 0.5\n", config + "factor: 0.5\n", config + "---\n" + config,
				strings.Replace(config, "v1alpha1", "v9", 1), config + "stateDir: /run/other\n", config + "rules: [{name: A b}]\n",
				config[:len(config)/2], config + "rails: {systemReserve: -1}\n", config + "stallGuard: {window: 1s}\n", "\x00\xff",
			}
			c = bad[rand.IntN(len(bad))]
			refused++
		}
		if err := agent.Configure(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2*time.Second + time.Duration(rand.IntN(1000))*time.Millisecond)
		if i%5 != 4 && i != size.configurations-1 {
			continue
		}
		checks++
		dir := cgroupOf(t, node, idOf(t, node, "default/stay", "app"))
		eventually(t, "the last valid configuration is in force", func() error {
			got := strings.TrimSpace(sh(t, node, "cat /sys/fs/cgroup/"+dir+"/memory.high"))
			if got != fmt.Sprint(want) {
				return fmt.Errorf("after configuration %d memory.high is %s, want %d", i, got, want)
			}
			plot.add("wanted", float64(i), float64(want-26<<20)/float64(52<<20))
			v, _ := strconv.ParseFloat(got, 64)
			plot.add("in the kernel", float64(i), (v-26*(1<<20))/(52*(1<<20)))
			return nil
		})
	}
	plot.save(t, "reload")
	if now := pid(); now != agentPID {
		t.Errorf("the agent's process was %s and is %s", agentPID, now)
	}
	failures := metric(t, agent, "memqos_config_reloads_total", map[string]string{"result": "failure"})
	figures(t, "reload", map[string]any{"Valid": valid, "Invalid": refused, "Checks": checks, "Refusals": failures})
	if err := agent.Configure(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	time.Sleep(3 * time.Second)
}

const daemonSet = `
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: memqos, namespace: memqos}
spec:
  selector: {matchLabels: {app: memqos}}
  template:
    metadata: {labels: {app: memqos}}
    spec: {containers: [{name: memqos, image: none}]}
`

// testWayBack: killed at random points, updated, and in the end uninstalled, memqos
// leaves the tree as it was. No controller runs, so the DaemonSet has no pods of its own.
func testWayBack(t *testing.T, node *testnode.Node, agent *nodeagent.Agent, size safety, before map[string]string, config string) {
	agent.DaemonSet = "memqos/memqos"
	defer func() { agent.DaemonSet = "" }()
	if err := node.Apply(t.Context(), []byte(daemonSet)); err != nil {
		t.Fatal(err)
	}
	plot := newSeries("Files that differ from before memqos", "step: kills, update, uninstall", "files")
	count := func(step int) int {
		n := len(changed(before, writable(t, node)))
		plot.add("files", float64(step), float64(n))
		return n
	}
	apply(t, node, besidePods("newcomer"))
	for i := range size.kills {
		// Another factor each time, so that there is something to write while it is killed.
		c := safetyConfig + fmt.Sprintf("memoryThrottlingFactor: %v\n", 0.3+0.03*float64(i%20))
		if err := agent.Kill(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := agent.Configure(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		count(i)
		if err := agent.Launch(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(rand.IntN(4000)) * time.Millisecond)
	}
	if err := agent.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := count(size.kills); n == 0 {
		t.Fatal("memqos has written nothing: there is nothing to give back")
	}
	// The kubelet's tick makes systemd write the classes anew: without it, what changes
	// is memqos's doing.
	sh(t, node, "systemctl stop kubelet")
	eventually(t, "all is written", func() error { return settled(t, agent) })
	during := writable(t, node)
	tr := startTrace(t, node)
	if err := agent.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	tr.read(t, node)
	updateWrites := 0
	for _, e := range tr.events {
		if e.kind == "write" && e.ours() {
			updateWrites++
		}
	}
	if diff := changed(during, writable(t, node)); updateWrites != 0 || len(diff) != 0 {
		t.Errorf("an agent that is updated made %d writes: %v", updateWrites, diff)
	}
	count(size.kills + 1)
	start(t, agent)
	if n := metric(t, agent, "memqos_writes_total", nil); n != 0 {
		t.Errorf("the agent after an update made %v writes, want 0", n)
	}
	if err := node.Delete(t.Context(), []byte(daemonSet)); err != nil {
		t.Fatal(err)
	}
	if err := agent.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	after := writable(t, node)
	if diff := changed(before, after); len(diff) != 0 {
		t.Errorf("after the uninstall: %s", strings.Join(diff, "\n"))
	}
	for file, value := range after {
		if _, was := before[file]; was {
			continue
		}
		// What was made since has what a kubelet with the gate off gives it.
		if b := path.Base(file); (b == "memory.min" || b == "memory.low") && value != "0" || b == "memory.high" && value != "max" {
			t.Errorf("%s is %s after the uninstall", file, value)
		}
	}
	count(size.kills + 2)
	plot.save(t, "way-back")
	figures(t, "way-back", map[string]any{"Kills": size.kills, "Files": len(before), "WrittenByMemqos": len(changed(before, during)), "WritesAtUpdate": updateWrites, "DifferentAfterUninstall": len(changed(before, after))})
	sh(t, node, "systemctl start kubelet")
	if err := node.Delete(t.Context(), besidePods("newcomer")); err != nil {
		t.Error(err)
	}
	if err := agent.Configure(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	start(t, agent)
}

// testLanding: memqos comes to a node of busy pods that use more than their memory.high.
func testLanding(t *testing.T, node *testnode.Node, agent *nodeagent.Agent, size safety, config string) {
	if err := agent.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := agent.Configure(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	var manifests []byte
	for i := range size.landing {
		if i%2 == 0 {
			manifests = append(manifests, workloadPod(fmt.Sprintf("busy-%d", i), "8Mi", "80Mi", "cache", "/tmp/data", "60Mi")...)
		} else {
			manifests = append(manifests, workloadPod(fmt.Sprintf("busy-%d", i), "8Mi", "40Mi", "hot", "24Mi")...)
		}
	}
	apply(t, node, manifests)
	time.Sleep(10 * time.Second) // until they have what they use
	plot := newSeries("Full stall of the busiest container while memqos lands", "seconds since memqos started", "share of the time")
	var last map[string][2]time.Duration // uptime and full
	var stalls []stallOf
	running := map[string]*stallOf{}
	begin := time.Now()
	sample := func() {
		now, most := fullStalls(t, node), 0.0
		for dir, n := range now {
			was, ok := last[dir]
			if !ok || n[0] <= was[0] {
				continue
			}
			share := float64(n[1]-was[1]) / float64(n[0]-was[0])
			most = max(most, share)
			one := running[dir]
			if one == nil {
				one = &stallOf{cgroup: path.Base(path.Dir(dir)), from: was[0]}
				running[dir] = one
			}
			one.to, one.full = n[0], one.full+n[1]-was[1] // at most so much in one go
			if share < 0.9 {
				stalls = append(stalls, *one)
				delete(running, dir)
			}
		}
		plot.add("busiest", time.Since(begin).Seconds(), most)
		last = now
	}
	for range 10 {
		sample()
		time.Sleep(300 * time.Millisecond)
	}
	without := longest(stalls, nil)
	stalls = nil
	tr := startTrace(t, node)
	begin = time.Now()
	if err := agent.Launch(t.Context()); err != nil {
		t.Fatal(err)
	}
	// Those that read a file can be reclaimed; those whose memory is anonymous are put off.
	anonymous := float64(size.landing / 2)
	all := false
	for !all && time.Since(begin) < 10*time.Minute {
		for range 50 {
			sample()
			time.Sleep(300 * time.Millisecond)
		}
		all = metric(t, agent, "memqos_landings", nil) <= anonymous &&
			metric(t, agent, "memqos_drifted_files", map[string]string{"level": "container", "file": "memory.high"}) <= anonymous
	}
	after := time.Since(begin)
	tr.read(t, node)
	for _, one := range running {
		stalls = append(stalls, *one)
	}
	open := map[int]stallOf{}
	var writes []stallOf
	var took []time.Duration
	for _, e := range tr.events {
		switch {
		case e.kind == "write" && e.ours() && e.file == "memory.high":
			open[e.pid] = stallOf{cgroup: e.cgroup, from: e.at}
		case e.kind == "wrote" && e.ours():
			if w, ok := open[e.pid]; ok {
				w.to = e.at
				writes, took = append(writes, w), append(took, e.at-w.from)
				delete(open, e.pid)
			}
		}
	}
	plot.save(t, "landing")
	steps := len(took)
	figures(t, "landing", map[string]any{
		"Pods": size.landing, "Seconds": after.Seconds(), "WritesOfMemoryHigh": steps, "WriteTook": spread(took),
		// The reader of a file at its memory.high is throttled at other times too.
		"LongestStallBefore": without.Seconds(), "LongestStallAtWrites": longest(stalls, writes).Seconds(), "LongestStall": longest(stalls, nil).Seconds(),
		"Landed":   metric(t, agent, "memqos_landings_total", map[string]string{"result": "written"}),
		"PutOff":   metric(t, agent, "memqos_landings_total", map[string]string{"result": "deferred"}),
		"UnderWay": metric(t, agent, "memqos_landings", nil),
	})
	if steps == 0 || !all {
		t.Errorf("in %v not all have landed that read a file, %d writes", after, steps)
	}
	if err := node.Delete(t.Context(), manifests); err != nil {
		t.Error(err)
	}
}

// stallOf is a stretch of time in which a container was fully stalled; or in which it was
// written to.
type stallOf struct {
	cgroup         string
	from, to, full time.Duration
}

// longest is the longest stall, of those during a write to the container or up to 2 s
// after, the most that the kernel lets a task sleep at once for it; nil: of all.
func longest(stalls, writes []stallOf) (worst time.Duration) {
	for _, s := range stalls {
		caused := writes == nil
		for _, w := range writes {
			caused = caused || w.cgroup == s.cgroup && w.from <= s.to && s.from <= w.to+2*time.Second
		}
		if caused {
			worst = max(worst, s.full)
		}
	}
	return worst
}

// fullStalls reads how long each container was fully stalled, and when that was read.
func fullStalls(t *testing.T, node *testnode.Node) map[string][2]time.Duration {
	t.Helper()
	out := sh(t, node, `cat /proc/uptime; grep -H ^full /sys/fs/cgroup/kubepods.slice/*/*/cri-*/memory.pressure || true`)
	first, rest, _ := strings.Cut(out, "\n")
	seconds, err := strconv.ParseFloat(strings.Fields(first)[0], 64)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string][2]time.Duration{}
	for line := range strings.Lines(rest) {
		file, fields, _ := strings.Cut(strings.TrimSpace(line), ":")
		_, total, ok := strings.Cut(fields, "total=")
		us, err := strconv.ParseInt(total, 10, 64)
		if !ok || err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		all[file] = [2]time.Duration{time.Duration(seconds * 1e9), time.Duration(us) * time.Microsecond}
	}
	return all
}

// testStalls: programs that stand still at memory.high are let go, and get all that
// they want or are killed at their limit.
func testStalls(t *testing.T, node *testnode.Node, agent *nodeagent.Agent, size safety) {
	before := metric(t, agent, "memqos_guard_changes_total", map[string]string{"reason": "MemoryThrottleRelaxed"})
	type run struct {
		Relaxed, Ended float64 // seconds after memory.high was reached
		OOMKilled      bool
	}
	var runs []run
	plot := newSeries("Growth of a program past its memory.high of 150.4 MiB", "seconds since it reached memory.high", "MiB in use")
	for i := range size.stalls {
		name := fmt.Sprintf("grower-%d", i)
		manifest := stallPod(name)
		beyond := i%5 == 4
		if beyond { // more than the limit
			manifest = workloadPod(name, "16Mi", "400Mi", "alloc", "500Mi")
		}
		if err := node.Apply(t.Context(), manifest); err != nil {
			t.Fatal(err)
		}
		eventually(t, "it runs", func() error {
			if containerID(t, node, "default/"+name) == "" {
				return fmt.Errorf("not yet")
			}
			return nil
		})
		cgroup := cgroupOf(t, node, containerID(t, node, "default/"+name))
		var r run
		var begin time.Time
		eventually(t, "it has all that it wants, or is killed", func() error {
			g, err := readGrowth(t, node, cgroup)
			if begin.IsZero() && g.usage >= stallHigh-(2<<20) {
				begin = time.Now()
			}
			at := time.Since(begin).Seconds()
			if !begin.IsZero() && err == nil && !beyond {
				plot.add(fmt.Sprintf("memqos, run %d", i+1), at, float64(g.usage)/(1<<20))
			}
			if r.Relaxed == 0 && !begin.IsZero() && g.high > stallHigh && g.high < 1<<62 {
				r.Relaxed = at
			}
			if beyond {
				if ended := terminated(t, node, name); ended != "" {
					r.Ended, r.OOMKilled = at, ended != "Completed" // the runtime does not always see why; the event below does
					return nil
				}
				return fmt.Errorf("it runs")
			}
			if err != nil || g.usage < stallTarget {
				return fmt.Errorf("it uses %d of memory.high %d (%w)", g.usage, g.high, err)
			}
			r.Ended = at
			return nil
		})
		if beyond != r.OOMKilled {
			t.Errorf("%s: OOM killed: %v", name, r.OOMKilled)
		}
		wantEvent(t, node, "Pod", name, "MemoryThrottleRelaxed")
		if beyond {
			wantEvent(t, node, "Pod", name, "OutOfMemoryPodLimit") // which the sandbox is charged to as well
		}
		runs = append(runs, r)
		if err := node.Delete(t.Context(), manifest); err != nil {
			t.Fatal(err)
		}
	}
	plot.save(t, "stall-memqos")
	figures(t, "stall", runs)
	if n := metric(t, agent, "memqos_guard_changes_total", map[string]string{"reason": "MemoryThrottleRelaxed"}) - before; n != float64(size.stalls) {
		t.Errorf("%v relaxations of %d stalled programs", n, size.stalls)
	}
}

// testCalm: what is slow for another reason is not relaxed.
func testCalm(t *testing.T, node *testnode.Node, agent *nodeagent.Agent, size safety) {
	if err := agent.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	labels := map[string]string{"reason": "MemoryThrottleRelaxed"}
	before := metric(t, agent, "memqos_guard_changes_total", labels)
	pods := map[string][]byte{
		"reader":  workloadPod("reader", "16Mi", "400Mi", "cache", "/tmp/data", "250Mi"),
		"stopped": workloadPod("stopped", "16Mi", "400Mi", "cache", "/tmp/data", "200Mi"),
		"steady":  workloadPod("steady", "16Mi", "400Mi", "hot", "138Mi"), // and what Go needs
		"build":   workloadPod("build", "16Mi", "400Mi", "build", "/tmp/data", "90Mi"),
		"spinner": workloadPod("spinner", "16Mi", "400Mi", "spin"),
	}
	dirs := map[string]string{}
	var manifests []byte
	for name, manifest := range pods {
		apply(t, node, manifest)
		dirs[name] = "/sys/fs/cgroup/" + cgroupOf(t, node, containerID(t, node, "default/"+name))
		manifests = append(manifests, manifest...)
	}
	read := func(name string) growth {
		g, err := readGrowth(t, node, strings.TrimPrefix(dirs[name], "/sys/fs/cgroup/"))
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	eventually(t, "two are at their memory.high, one near it", func() error {
		for name, least := range map[string]int64{"reader": stallHigh * 97 / 100, "stopped": stallHigh * 97 / 100, "steady": stallHigh * 93 / 100} {
			if g := read(name); g.usage < least || g.high != stallHigh {
				return fmt.Errorf("%s uses %d of memory.high %d", name, g.usage, g.high)
			}
		}
		return nil
	})
	sh(t, node, "kill -STOP $(cat "+dirs["stopped"]+"/cgroup.procs)")
	type life struct {
		From, To growthFigures
		Share    float64 // of memory.high, on average
	}
	lives := map[string]*life{}
	for name := range pods {
		lives[name] = &life{From: read(name).figures()}
	}
	plot := newSeries("Programs that are no stall", "seconds", "MiB in use")
	begin, samples := time.Now(), 0
	for time.Since(begin) < size.calm {
		samples++
		for name := range pods {
			g := read(name)
			plot.add(name, time.Since(begin).Seconds(), float64(g.usage)/(1<<20))
			lives[name].Share += float64(g.usage) / float64(stallHigh)
		}
		time.Sleep(4 * time.Second)
	}
	for name, l := range lives {
		l.To = read(name).figures()
		l.Share /= float64(samples)
	}
	plot.save(t, "calm")
	relaxed := metric(t, agent, "memqos_guard_changes_total", labels) - before
	figures(t, "calm", map[string]any{"Seconds": time.Since(begin).Seconds(), "Relaxations": relaxed, "Programs": lives})
	if relaxed != 0 {
		t.Errorf("%v relaxations of programs that are no stall", relaxed)
	}
	if lives["reader"].To.Events == lives["reader"].From.Events {
		t.Error("the reader had no high event: it was not at its memory.high")
	}
	sh(t, node, "kill -CONT $(cat "+dirs["stopped"]+"/cgroup.procs)")
	if err := node.Delete(t.Context(), manifests); err != nil {
		t.Error(err)
	}
}

type growthFigures struct {
	Usage, Events int64
	FullSeconds   float64
}

func (g growth) figures() growthFigures {
	return growthFigures{g.usage, g.events, float64(g.fullUs) / 1e6}
}
