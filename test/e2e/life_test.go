//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/memqos/memqos/hack/nodeagent"
	"github.com/memqos/memqos/hack/testnode"
	"github.com/memqos/memqos/status"
)

// testDebug: what kubectl debug does to a running pod. The ephemeral container has
// neither request nor limit, and gets what the release gives such a one.
func testDebug(t *testing.T, node *testnode.Node, c column) {
	pods := clientset(t, node).CoreV1().Pods("default")
	pod, err := pods.Get(t.Context(), "shared-pid", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pod.Spec.EphemeralContainers = append(pod.Spec.EphemeralContainers, corev1.EphemeralContainer{
		EphemeralContainerCommon: corev1.EphemeralContainerCommon{
			Name: "debugger", Image: testnode.WorkloadImage, ImagePullPolicy: corev1.PullNever, Args: []string{"sleep"},
		},
	})
	if _, err := pods.UpdateEphemeralContainers(t.Context(), pod.Name, pod, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the ephemeral container has its values", func() error {
		s := takeSnapshot(t, node)
		want := "max"
		if c.debugFactor > 0 {
			allocatable, err := strconv.ParseFloat(s["kubepods"]["memory.max"], 64)
			if err != nil {
				return err
			}
			want = strconv.FormatInt(int64(allocatable*c.debugFactor)/4096*4096, 10)
		}
		got := s["container default/shared-pid/debugger"]
		if got["memory.min"] != "0" || got["memory.high"] != want {
			return fmt.Errorf("it has %v, want memory.min 0 and memory.high %s", got, want)
		}
		return nil
	})
}

// testInspect: memqos inspect sees the same, and nothing that it manages has drifted.
func testInspect(t *testing.T, agent *nodeagent.Agent) {
	eventually(t, "inspect has only good verdicts", func() error {
		out, err := agent.Inspect(t.Context(), "json")
		if err != nil {
			return err
		}
		var in status.NodeStatus
		if err := json.Unmarshal([]byte(out), &in); err != nil {
			return err
		}
		verdicts := map[status.Verdict]int{}
		for _, o := range in.Cgroups {
			verdicts[o.Verdict]++
			if o.Verdict == status.Drifted {
				return fmt.Errorf("%s wants %s and holds %s", o.Cgroup, o.Wanted, o.Actual)
			}
			if o.Verdict == status.Unknown && o.Container != "" {
				return fmt.Errorf("%s is container %s and unknown", o.Cgroup, o.Container)
			}
		}
		if verdicts[status.Fulfilled] < 40 {
			return fmt.Errorf("only %d cgroups are fulfilled", verdicts[status.Fulfilled])
		}
		return nil
	})
}

const added = `
apiVersion: v1
kind: Pod
metadata: {name: added}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: app
    image: docker.io/memqos/workload:test
    imagePullPolicy: Never
    args: [sleep]
    resources: {requests: {memory: 40Mi}, limits: {memory: 80Mi}}
`

func limitless(n int) []byte {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `
---
apiVersion: v1
kind: Pod
metadata: {name: limitless-%d}
spec:
  hostNetwork: true
  terminationGracePeriodSeconds: 1
  containers:
  - name: app
    image: docker.io/memqos/workload:test
    imagePullPolicy: Never
    args: [sleep]
    resources: {requests: {memory: %dMi}}
`, i, 10+i)
	}
	return []byte(b.String())
}

// testChurn: a pod is added, a container restarts, a node fills with pods that
// have no limit, pods are deleted. The sums are right a moment later, and nothing
// stale stays.
func testChurn(t *testing.T, node *testnode.Node) {
	sums := func(want map[string]int64) {
		t.Helper()
		awaitSums(t, node, want)
	}
	guaranteed, burstable := requests(listPods(t, node))
	sums(map[string]int64{"kubepods": guaranteed + burstable, "burstable": burstable})

	apply(t, node, []byte(added))
	sums(map[string]int64{"kubepods": guaranteed + burstable + 40<<20, "burstable": burstable + 40<<20})
	holds := func(container, high string) {
		t.Helper()
		eventually(t, container, func() error {
			if got := takeSnapshot(t, node)[container]["memory.high"]; got != high {
				return fmt.Errorf("memory.high is %q, want %s", got, high)
			}
			return nil
		})
	}
	holds("container default/added/app", "79691776") // 40Mi + 0.9 x 40Mi

	restartContainer(t, node, "default/added")
	holds("container default/added/app", "79691776")

	const many = 6
	apply(t, node, limitless(many))
	extra := int64(40 << 20)
	for i := range int64(many) {
		extra += (10 + i) << 20
	}
	sums(map[string]int64{"kubepods": guaranteed + burstable + extra, "burstable": burstable + extra})
	allocatable, err := strconv.ParseFloat(takeSnapshot(t, node)["kubepods"]["memory.max"], 64)
	if err != nil {
		t.Fatal(err)
	}
	for i := range many {
		request := float64((10 + i) << 20)
		high := int64(request+(allocatable-request)*0.9) / 4096 * 4096
		holds(fmt.Sprintf("container default/limitless-%d/app", i), strconv.FormatInt(high, 10))
	}

	if err := node.Delete(t.Context(), append(limitless(many), []byte("---\n"+added)...)); err != nil {
		t.Fatal(err)
	}
	sums(map[string]int64{"kubepods": guaranteed + burstable, "burstable": burstable})
}

// testEmptied: all Burstable pods go, and the sum goes to 0, where a kubelet up to
// 1.35 leaves the last one standing. They are deleted at once, without waiting for
// the kubelet, which takes minutes over it on an emulated node.
func testEmptied(t *testing.T, node *testnode.Node) {
	for _, namespace := range []string{"default", "shop", "random", "kube-system"} {
		if err := clientset(t, node).CoreV1().Pods(namespace).DeleteCollection(t.Context(), metav1.DeleteOptions{GracePeriodSeconds: new(int64)}, metav1.ListOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	// A static pod cannot be deleted through the API.
	if _, err := node.Run(t.Context(), "sh", "-c", "rm -f $(grep -rl static-burstable /etc/kubernetes/manifests)"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all but one static pod are gone", func() error {
		pods := listPods(t, node)
		if len(pods) != 1 || pods[0].Name != "static-guaranteed-"+node.Name() {
			return fmt.Errorf("%d pods", len(pods))
		}
		return nil
	})
	awaitSums(t, node, map[string]int64{"kubepods": 21 << 20, "burstable": 0})
}

// awaitSums waits until the classes have sums, in bytes, as their memory.min.
func awaitSums(t *testing.T, node *testnode.Node, want map[string]int64) {
	t.Helper()
	eventually(t, "the sums", func() error {
		s := takeSnapshot(t, node)
		for name, bytes := range want {
			if got := s[name]["memory.min"]; got != strconv.FormatInt(bytes/4096*4096, 10) {
				return fmt.Errorf("%s memory.min is %s, want %d", name, got, bytes)
			}
		}
		return nil
	})
}

// restartContainer kills a pod's first container, and waits until it is back with
// another id.
func restartContainer(t *testing.T, node *testnode.Node, pod string) {
	t.Helper()
	before := containerID(t, node, pod)
	scope := "/sys/fs/cgroup/" + strings.TrimSuffix(cgroupOf(t, node, before), "/container") // crun's own
	if _, err := node.Run(t.Context(), "sh", "-c", "kill -9 $(cat $(find "+scope+" -name cgroup.procs))"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the container comes back", func() error {
		if id := containerID(t, node, pod); id == before || id == "" {
			return fmt.Errorf("its id is still %q", id)
		}
		return nil
	})
}

// testChange: what testChurn does, in small: a container restarts, a pod goes.
func testChange(t *testing.T, node *testnode.Node, c column) {
	restartContainer(t, node, "default/burstable")
	eventually(t, "the container that came back has its memory.high", func() error {
		if got := takeSnapshot(t, node)["container default/burstable/app"]["memory.high"]; got != c.high {
			return fmt.Errorf("it is %q, want %s", got, c.high)
		}
		return nil
	})
	guaranteed, burstable := requests(listPods(t, node))
	if err := node.Delete(t.Context(), []byte("apiVersion: v1\nkind: Pod\nmetadata: {name: burstable}\n")); err != nil {
		t.Fatal(err)
	}
	awaitSums(t, node, map[string]int64{"kubepods": guaranteed + burstable - 64<<20})
}

// testRestart: kill -9 and a new start lose nothing, and on an unchanged node the
// second start writes nothing.
func testRestart(t *testing.T, node *testnode.Node, agent *nodeagent.Agent) {
	apply(t, node, []byte(added))
	eventually(t, "inspect is content", func() error {
		return settled(t, agent)
	})
	// The kubelet's own minute tick makes systemd rewrite the QoS slices: with it
	// the node would not be an unchanged one.
	if _, err := node.Run(t.Context(), "systemctl", "stop", "kubelet"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(5 * time.Second) // two passes, to repair a tick that came just before
	want := takeSnapshot(t, node)

	if err := agent.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	start(t, agent)
	for range 2 { // ready is after the first pass; see one more
		passes, err := agent.Metric(t.Context(), "memqos_full_passes_total", nil)
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "another full pass", func() error {
			now, err := agent.Metric(t.Context(), "memqos_full_passes_total", nil)
			if err == nil && now <= passes {
				err = fmt.Errorf("%v passes", now)
			}
			return err
		})
	}
	writes, err := agent.Metric(t.Context(), "memqos_writes_total", nil)
	if err != nil {
		t.Fatal(err)
	}
	if writes != 0 {
		log, _ := agent.Log(t.Context())
		t.Errorf("%v writes after a restart on an unchanged node, want 0; log:\n%s", writes, log)
	}
	containers, err := agent.Metric(t.Context(), "memqos_cgroups", map[string]string{"level": "container"})
	if err != nil {
		t.Fatal(err)
	}
	if containers < 1 {
		t.Errorf("0 writes, but %v containers were compared", containers)
	}
	if err := same(differences(want, takeSnapshot(t, node))); err != nil {
		t.Error(err)
	}

	// What was overwritten while no agent ran is put right at the next start.
	if err := agent.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	path := cgroupOf(t, node, containerID(t, node, "default/added"))
	if err := node.WriteFile(t.Context(), "/sys/fs/cgroup/"+path+"/memory.high", []byte("max"), 0o644); err != nil {
		t.Fatal(err)
	}
	start(t, agent)
	if err := same(differences(want, takeSnapshot(t, node))); err != nil {
		t.Error(err)
	}
	if writes, err := agent.Metric(t.Context(), "memqos_writes_total", map[string]string{"result": "written"}); err != nil || writes != 1 {
		t.Errorf("%v writes, want 1 (%v)", writes, err)
	}
	if _, err := node.Run(t.Context(), "systemctl", "start", "kubelet"); err != nil {
		t.Fatal(err)
	}
}

// testLateKubepods: an agent that finds no kubepods idles and is ready, and
// begins to work when it appears.
func testLateKubepods(t *testing.T, node *testnode.Node, agent *nodeagent.Agent) {
	if err := agent.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	late, err := nodeagent.Install(t.Context(), node, root, `
apiVersion: memqos.io/v1alpha1
kind: MemoryQoSConfiguration
cgroupRoot: /late
cgroupDriver: cgroupfs
resyncPeriod: 2s
`)
	if err != nil {
		t.Fatal(err)
	}
	start(t, late)
	if n, err := late.Metric(t.Context(), "memqos_node_unsupported", map[string]string{"reason": "KubepodsNotFound"}); err != nil || n != 1 {
		t.Errorf("memqos_node_unsupported is %v (%v), want 1", n, err)
	}
	if _, err := node.Run(t.Context(), "sh", "-ec", `
		cd /sys/fs/cgroup
		mkdir late && echo +memory > late/cgroup.subtree_control
		mkdir late/kubepods && echo +memory > late/kubepods/cgroup.subtree_control
		mkdir late/kubepods/burstable`); err != nil {
		t.Fatal(err)
	}
	eventually(t, "kubepods appeared and is served", func() error {
		got, err := node.ReadFile(t.Context(), "/sys/fs/cgroup/late/kubepods/memory.min")
		if err == nil && strings.TrimSpace(string(got)) != strconv.Itoa(21<<20) { // the static pod that is left
			err = fmt.Errorf("memory.min is %s", got)
		}
		return err
	})
	log, err := late.Log(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(log, `"reason":"KubepodsNotFound"`); n != 1 {
		t.Errorf("the log says %d times that the node is idle, want once:\n%s", n, log)
	}
}

// settled is an error while inspect shows a cgroup that does not hold what is wanted. A
// container that has none yet, behind an init container, is not one.
func settled(t *testing.T, agent *nodeagent.Agent) error {
	t.Helper()
	out, err := agent.Inspect(t.Context(), "json")
	if err != nil {
		return err
	}
	var in status.NodeStatus
	if err := json.Unmarshal([]byte(out), &in); err != nil {
		return err
	}
	for _, o := range in.Cgroups {
		if o.Cgroup != "" && (o.Verdict == status.Drifted || o.Verdict == status.Pending) {
			return fmt.Errorf("%s is %s: wanted %s, has %s", o.Cgroup, o.Verdict, o.Wanted, o.Actual)
		}
	}
	return nil
}

// requests sums what the pods ask for, in bytes, without the product's code: each
// pod's sum is rounded up, as fractions of a byte are.
func requests(pods []corev1.Pod) (guaranteed, burstable int64) {
	for i := range pods {
		pod := &pods[i]
		if pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed || pod.Status.QOSClass == corev1.PodQOSBestEffort {
			continue
		}
		var sum, sidecars, peak resource.Quantity
		for _, c := range pod.Spec.InitContainers {
			alone := sidecars.DeepCopy()
			alone.Add(*c.Resources.Requests.Memory())
			if c.RestartPolicy != nil {
				sidecars = alone.DeepCopy()
			}
			if alone.Cmp(peak) > 0 {
				peak = alone
			}
		}
		sum = sidecars
		for _, c := range pod.Spec.Containers {
			sum.Add(*c.Resources.Requests.Memory())
		}
		if peak.Cmp(sum) > 0 {
			sum = peak
		}
		if pod.Spec.Resources != nil {
			if q, ok := pod.Spec.Resources.Requests[corev1.ResourceMemory]; ok {
				sum = q.DeepCopy()
			}
		}
		sum.Add(*pod.Spec.Overhead.Memory())
		if pod.Status.QOSClass == corev1.PodQOSGuaranteed {
			guaranteed += sum.Value()
		} else {
			burstable += sum.Value()
		}
	}
	return guaranteed, burstable
}

// containerID returns the id of a pod's first container, if that runs.
func containerID(t *testing.T, node *testnode.Node, pod string) string {
	t.Helper()
	p := findPod(listPods(t, node), pod)
	if p == nil || len(p.Status.ContainerStatuses) == 0 || p.Status.ContainerStatuses[0].State.Running == nil {
		return ""
	}
	_, id, _ := strings.Cut(p.Status.ContainerStatuses[0].ContainerID, "://")
	return id
}

// cgroupOf returns the path of a container's cgroup.
func cgroupOf(t *testing.T, node *testnode.Node, id string) string {
	t.Helper()
	cgroups, err := node.Cgroups(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for path := range cgroups {
		if id != "" && strings.Contains(path, id) {
			return path
		}
	}
	t.Fatalf("no cgroup of container %q", id)
	return ""
}

// testKernel runs the tests of package cgroup that need a real cgroup2 on the node.
func testKernel(t *testing.T, node *testnode.Node) {
	const guest = "/usr/local/bin/cgroup.test"
	binary := filepath.Join(t.TempDir(), "cgroup.test")
	build := exec.CommandContext(t.Context(), "go", "test", "-c", "-tags", "kernel", "-o", binary, "./cgroup")
	build.Dir = root
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := node.CopyIn(t.Context(), binary, guest); err != nil {
		t.Fatal(err)
	}
	out, err := node.Run(t.Context(), guest, "-test.v", "-test.run", "TestKernel")
	t.Log(out)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(out, "--- PASS: TestKernel"); n < 4 {
		t.Errorf("%d tests have passed, want 4 at least", n)
	}
}
