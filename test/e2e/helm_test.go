//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/memqos/memqos/hack/testnode"
	"github.com/memqos/memqos/status"
	"github.com/memqos/memqos/test/conformance"
)

const agents = "app.kubernetes.io/component=agent"

// TestHelm: what a user does. The image of the Dockerfile, the chart installed by helm,
// its pods made by the DaemonSet controller and placed by the scheduler, run by the
// kubelet with the chart's own security context.
func TestHelm(t *testing.T) {
	h := newHelm(t, testnode.Options{Audit: true, StaticPods: map[string][]byte{
		"static-burstable.yaml":  read(t, "static-burstable.yaml"),
		"static-guaranteed.yaml": read(t, "static-guaranteed.yaml"),
	}})
	node := h.node
	apply(t, node, read(t, "pods.yaml"))
	awaitOthers(t, node)
	before := takeSnapshot(t, node)

	h.install()
	oracle := recorded(t, "kubelet-1.27.4-systemd")
	eventually(t, "parity", func() error { return same(differences(h.expected(oracle), takeSnapshot(t, node))) })
	s := takeSnapshot(t, node)
	t.Logf("parity with the recorded kubelet: %d containers, %d sandboxes, %d pods, kubepods and its classes, 4 files each: equal; %d files differed before",
		s.Count("container"), s.Count("sandbox"), s.Count("pod"), len(differences(h.expected(oracle), before)))

	t.Run("confined", func(t *testing.T) { h.with(t).confined() })
	t.Run("helm test", func(t *testing.T) { h.with(t).test() })
	t.Run("upgrade and rollback", func(t *testing.T) {
		h := h.with(t)
		pod := h.agent().Name
		h.run("upgrade", "memqos", root+"/deploy/helm/memqos", "--namespace=memqos", "--reuse-values", "--wait", "--timeout=8m", "--set-json=config.memoryThrottlingFactor=0.5")
		h.holds("container default/burstable/app", "100663296") // 64Mi + 0.5 x 64Mi
		h.run("rollback", "memqos", "1", "--namespace=memqos", "--wait", "--timeout=8m")
		h.holds("container default/burstable/app", high127)
		if now := h.agent().Name; now != pod {
			t.Errorf("a factor that a running agent can change has replaced its pod %s by %s", pod, now)
		}
	})
	t.Run("rolling update", func(t *testing.T) { h.with(t).rollingUpdate() })
	t.Run("rights", func(t *testing.T) { testRights(t, node) })
	t.Run("uninstall", func(t *testing.T) {
		h := h.with(t)
		h.run("uninstall", "memqos", "--namespace=memqos", "--wait", "--timeout=5m")
		eventually(t, "the tree is as before", func() error { return same(differences(before, takeSnapshot(t, node))) })
	})
}

// helm is a release on a node.
type helm struct {
	t                  *testing.T
	node               *testnode.Node
	binary, kubeconfig string
}

// newHelm boots a node with a whole control plane, on which the image is that the
// Dockerfile makes.
func newHelm(t *testing.T, o testnode.Options) helm {
	t.Helper()
	h := helm{t: t, binary: os.Getenv("HELM")}
	if h.binary == "" {
		t.Fatal("HELM is not set: run this by make")
	}
	image := filepath.Join(t.TempDir(), "image.tar")
	build := exec.CommandContext(t.Context(), root+"/hack/image.sh", image)
	build.Env = append(os.Environ(), "VERSION=e2e", "IMAGE=ghcr.io/memqos/memqos:e2e")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the image: %v\n%s", err, out)
	}
	info, err := os.Stat(image)
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() >= 40<<20 {
		t.Errorf("the image has %d bytes, want less than 40 MiB", info.Size())
	}

	o.Kubernetes, o.CgroupDriver, o.Controllers = "1.27.4", "systemd", true
	h.node = bareNode(t, o)
	if h.kubeconfig, err = h.node.Kubeconfig("admin", "system:masters"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(h.state())
		}
	})
	const guestImage = "/var/lib/testnode/memqos.tar"
	if err := h.node.CopyIn(t.Context(), image, guestImage); err != nil {
		t.Fatal(err)
	}
	if _, err := h.node.Run(t.Context(), "ctr", "-n", "k8s.io", "images", "import", guestImage); err != nil {
		t.Fatal(err)
	}
	return h
}

// install installs the chart, with a full pass every 15 s and without the rails.
func (h helm) install(flags ...string) {
	h.t.Helper()
	h.run("install", append(flags, "memqos", root+"/deploy/helm/memqos", "--namespace=memqos", "--create-namespace", "--wait", "--timeout=8m",
		"--set=image.tag=e2e,config.resyncPeriod=15s,config.logging.verbosity=2",
		"--set=config.rails.reclaimMargin=0,config.rails.systemReserve=0")...) // as a kubelet
	h.ready()
}

// ready waits until every pod of the DaemonSet is of its newest template and ready;
// helm --wait does for less, what maxUnavailable leaves.
func (h helm) ready() {
	h.t.Helper()
	eventually(h.t, "all agents are ready", func() error {
		ds, err := clientset(h.t, h.node).AppsV1().DaemonSets("memqos").Get(h.t.Context(), "memqos", metav1.GetOptions{})
		if err != nil {
			return err
		}
		pods, err := clientset(h.t, h.node).CoreV1().Pods("memqos").List(h.t.Context(), metav1.ListOptions{LabelSelector: agents})
		if err != nil {
			return err
		}
		s := ds.Status
		if n := s.DesiredNumberScheduled; s.ObservedGeneration != ds.Generation || n == 0 || s.UpdatedNumberScheduled != n || s.NumberAvailable != n || len(pods.Items) != int(n) {
			return fmt.Errorf("%d pods, %+v", len(pods.Items), s)
		}
		return nil
	})
}

func (h helm) with(t *testing.T) helm {
	h.t = t
	return h
}

func (h helm) run(command string, args ...string) string {
	h.t.Helper()
	began := time.Now()
	cmd := exec.CommandContext(h.t.Context(), h.binary, append([]string{command, "--kubeconfig=" + h.kubeconfig}, args...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		h.t.Fatalf("helm %s: %v\n%s", command, err, out)
	}
	h.t.Logf("helm %s: %.0f s", command, time.Since(began).Seconds())
	return string(out)
}

// state says why a release does not do what it should. It is for when the test is over.
func (h helm) state() string {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var b strings.Builder
	pods, err := clientset(h.t, h.node).CoreV1().Pods("memqos").List(ctx, metav1.ListOptions{})
	if err != nil {
		return err.Error()
	}
	for i := range pods.Items {
		status, err := json.Marshal(pods.Items[i].Status)
		fmt.Fprintf(&b, "%s: %s %v\n", pods.Items[i].Name, status, err)
		log, err := clientset(h.t, h.node).CoreV1().Pods("memqos").GetLogs(pods.Items[i].Name, &corev1.PodLogOptions{}).DoRaw(ctx)
		fmt.Fprintf(&b, "%s %v\n", log, err)
	}
	return b.String()
}

// agent is the pod of the DaemonSet on the node.
func (h helm) agent() *corev1.Pod {
	h.t.Helper()
	pods, err := clientset(h.t, h.node).CoreV1().Pods("memqos").List(h.t.Context(), metav1.ListOptions{
		LabelSelector: agents, FieldSelector: "spec.nodeName=" + h.node.Name(),
	})
	if err != nil {
		h.t.Fatal(err)
	}
	if len(pods.Items) != 1 {
		h.t.Fatalf("%d pods of the DaemonSet on the node, want 1", len(pods.Items))
	}
	return &pods.Items[0]
}

// inspect runs memqos inspect in the agent's container, as kubectl exec would.
func (h helm) inspect() *status.NodeStatus {
	h.t.Helper()
	_, id, _ := strings.Cut(h.agent().Status.ContainerStatuses[0].ContainerID, "://")
	out, err := h.node.Run(h.t.Context(), "ctr", "-n", "k8s.io", "task", "exec", "--exec-id", "inspect", id,
		"/memqos", "inspect", "-o", "json", "--config=/etc/memqos/config.yaml", "--cgroup-root=/host/sys/fs/cgroup")
	if err != nil {
		h.t.Fatal(err)
	}
	s, err := status.Parse([]byte(out))
	if err != nil {
		h.t.Fatalf("inspect: %v\n%s", err, out)
	}
	return s
}

// test runs the chart's own test.
func (h helm) test() {
	h.t.Helper()
	out := h.run("test", "memqos", "--namespace=memqos", "--timeout=8m", "--logs")
	h.t.Log(out)
	if !strings.Contains(out, "Phase:          Succeeded") || !strings.Contains(out, "Fulfilled") {
		h.t.Errorf("want a test that succeeded and a table of verdicts")
	}
	if strings.Contains(out, "note: read without the agent") || strings.Contains(out, "Drifted") {
		h.t.Errorf("want the agent's own word, and nothing that drifts")
	}
	if err := clientset(h.t, h.node).CoreV1().Pods("memqos").Delete(h.t.Context(), "memqos-inspect", metav1.DeleteOptions{}); err != nil {
		h.t.Error(err)
	}
}

func (h helm) holds(container, high string) {
	h.t.Helper()
	eventually(h.t, container, func() error {
		if got := takeSnapshot(h.t, h.node)[container]["memory.high"]; got != high {
			return fmt.Errorf("memory.high is %q, want %s", got, high)
		}
		return nil
	})
}

// expected is what the recorded kubelet would hold with the pods of this node: its
// random pods taken out, and the agent's own put in. Of that the container has what the
// runtime gave it: the kernel lets nobody write the root of their cgroup namespace.
func (h helm) expected(oracle conformance.Record) conformance.Snapshot {
	h.t.Helper()
	want := maps.Clone(onNode(h.t, oracle, takeSnapshot(h.t, h.node)))
	maps.DeleteFunc(want, func(name string, _ map[string]string) bool { return strings.Contains(name, " random/") })
	guaranteed, burstable := requests(listPods(h.t, h.node))
	page := func(bytes int64) string { return strconv.FormatInt(bytes/4096*4096, 10) }
	for name, sum := range map[string]int64{"kubepods": guaranteed + burstable, "burstable": burstable} {
		want[name] = maps.Clone(want[name])
		want[name]["memory.min"] = page(sum)
	}
	pod := h.agent()
	resources := pod.Spec.Containers[0].Resources
	limit := page(resources.Limits.Memory().Value())
	name := "memqos/" + pod.Name
	want["pod "+name] = map[string]string{"memory.min": page(resources.Requests.Memory().Value()), "memory.low": "0", "memory.high": "max", "memory.max": limit}
	want["container "+name+"/memqos"] = map[string]string{"memory.min": "0", "memory.low": "0", "memory.high": "max", "memory.max": limit}
	want["sandbox "+name] = map[string]string{"memory.min": "0", "memory.low": "0", "memory.high": "max", "memory.max": "max"}
	return want
}

func recorded(t *testing.T, name string) conformance.Record {
	t.Helper()
	records, err := conformance.Records()
	if err != nil {
		t.Fatal(err)
	}
	r, ok := records[name]
	if !ok {
		t.Fatalf("there is no record %s", name)
	}
	return r
}

// confined: what the kernel says of the agent's process.
func (h helm) confined() {
	h.t.Helper()
	const script = `for p in /proc/[0-9]*; do
		[ "$(readlink $p/exe)" = /memqos ] || continue
		echo "pid ${p#/proc/}"
		grep -E '^(Uid|Cap...|NoNewPrivs|Seccomp|VmRSS|RssAnon):' $p/status
		c=/sys/fs/cgroup$(cut -d: -f3 $p/cgroup)
		echo "container: memory.current $(cat $c/memory.current) of it anon $(sed -n 's/^anon //p' $c/memory.stat), memory.peak $(cat $c/memory.peak)"
		for n in cgroup ipc mnt net pid uts; do [ "$(readlink $p/ns/$n)" != "$(readlink /proc/1/ns/$n)" ] && echo "own $n"; done
		done; true`
	out, err := h.node.Run(h.t.Context(), "sh", "-c", script)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Log(out)
	if n := strings.Count(out, "pid "); n != 1 {
		h.t.Fatalf("want one process of memqos")
	}
	for _, want := range []string{
		"CapInh:\t0000000000000000", "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "CapAmb:\t0000000000000000",
		"NoNewPrivs:\t1", "Seccomp:\t2", "own cgroup", "own ipc", "own mnt", "own net", "own pid", "own uts",
	} {
		if !strings.Contains(out, want+"\n") {
			h.t.Errorf("the agent's process lacks %q", want)
		}
	}
}

// rollingUpdate: another template, so a new pod. Had the old agent given back what it
// wrote, the new one would have to write all containers again.
func (h helm) rollingUpdate() {
	h.t.Helper()
	old := h.agent()
	want := takeSnapshot(h.t, h.node)
	sets := clientset(h.t, h.node).AppsV1().DaemonSets("memqos")
	patch := []byte(`{"spec":{"template":{"metadata":{"annotations":{"restarted":"once"}}}}}`)
	if _, err := sets.Patch(h.t.Context(), "memqos", types.StrategicMergePatchType, patch, metav1.PatchOptions{}); err != nil {
		h.t.Fatal(err)
	}
	h.ready()
	pod := h.agent()
	if pod.UID == old.UID {
		h.t.Fatal("the pod is still the old one")
	}
	eventually(h.t, "the tree is as before the update", func() error {
		got := takeSnapshot(h.t, h.node)
		for _, s := range []conformance.Snapshot{got, want} { // the agent's own pods are others
			maps.DeleteFunc(s, func(name string, _ map[string]string) bool { return strings.Contains(name, " memqos/") })
		}
		return same(differences(want, got))
	})
	written := h.written(pod.Name)
	h.t.Logf("the new agent has written: %v", written)
	if n := written["container"]; n != 0 {
		h.t.Errorf("the new agent had to write %v files of containers, want 0", n)
	}
	if n := written["pod"]; n > 1 { // its own pod's memory.min
		h.t.Errorf("the new agent had to write %v files of pods, want its own pod's alone", n)
	}
}

// written counts what an agent has written, by level, from its metrics.
func (h helm) written(pod string) map[string]float64 {
	h.t.Helper()
	body, err := clientset(h.t, h.node).CoreV1().Pods("memqos").ProxyGet("http", pod, "9810", "metrics", nil).DoRaw(h.t.Context())
	if err != nil {
		h.t.Fatal(err)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(string(body)))
	if err != nil {
		h.t.Fatal(err)
	}
	family, ok := families["memqos_writes_total"]
	if !ok {
		h.t.Fatal("no metric memqos_writes_total")
	}
	written := map[string]float64{}
	for _, m := range family.GetMetric() {
		labels := map[string]string{}
		for _, l := range m.GetLabel() {
			labels[l.GetName()] = l.GetValue()
		}
		if labels["result"] == "written" {
			written[labels["level"]] += m.GetCounter().GetValue()
		}
	}
	return written
}
