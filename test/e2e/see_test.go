//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/memqos/memqos/hack/browser"
	"github.com/memqos/memqos/hack/testnode"
	"github.com/memqos/memqos/status"
	"github.com/memqos/memqos/test/see"
)

// viewerObjects are a user who may do what the chart's viewer role says, and what the
// plugin's subcommands ask for beside it, and no more.
const viewerObjects = `
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: viewer, namespace: memqos}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: memqos-viewer}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: viewer}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: reader}
rules:
- {apiGroups: [""], resources: [pods], verbs: [get, list]}
- {apiGroups: [""], resources: [nodes], verbs: [list]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: reader}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: reader}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: viewer}]
`

// viewer runs kubectl memqos as a user with the least rights.
type viewer struct {
	*testing.T
	binary, kubeconfig string
}

func (v *viewer) try(args ...string) (stdout, stderr string, err error) {
	v.Helper()
	ctx, cancel := context.WithTimeout(v.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, v.binary, append(args, "--kubeconfig", v.kubeconfig, "--node-timeout", "20s")...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err = cmd.Run()
	v.Logf("$ kubectl memqos %s (%v)\n%s%s", strings.Join(args, " "), err, out.String(), errOut.String())
	return out.String(), errOut.String(), err
}

// screen writes what a terminal gets of a command's standard output, colours included,
// once that has a word.
func (v *viewer) screen(file, command, word string) error {
	run := exec.CommandContext(v.Context(), "script", "-qec", fmt.Sprintf("%s %s --kubeconfig %s 2>/dev/null", v.binary, command, v.kubeconfig), "/dev/null")
	run.Env = append(os.Environ(), "TERM=xterm")
	out, err := run.Output()
	if err != nil {
		return err
	}
	text := strings.ReplaceAll(string(out), "\r\n", "\n")
	if !strings.Contains(text, word) || !strings.Contains(text, "\x1b[") {
		return fmt.Errorf("no %q, or no colour, in %q", word, text)
	}
	return os.WriteFile(file, []byte("$ kubectl memqos "+command+"\n"+text), 0o644)
}

func (v *viewer) run(args ...string) string {
	v.Helper()
	out, errOut, err := v.try(args...)
	if err != nil {
		v.Fatalf("kubectl memqos %s: %v\n%s", strings.Join(args, " "), err, errOut)
	}
	return out
}

func (v *viewer) node(args ...string) status.NodeStatus {
	v.Helper()
	var s status.NodeStatus
	out, _, err := v.try(append(args, "-o", "json")...)
	if err == nil {
		err = json.Unmarshal([]byte(out), &s)
	}
	if err != nil {
		v.Log(err)
	}
	return s
}

// contains asserts that a text has each of some words.
func (v *viewer) contains(text string, words ...string) {
	v.Helper()
	for _, word := range words {
		if !strings.Contains(text, word) {
			v.Errorf("there is no %q in\n%s", word, text)
		}
	}
}

func actual(s *status.NodeStatus) map[string]map[string]string {
	out := map[string]map[string]string{}
	for _, c := range s.Cgroups {
		if c.Actual == nil {
			continue
		}
		out[c.Cgroup] = map[string]string{}
		for file, v := range c.Actual {
			out[c.Cgroup][string(file)] = v.String()
		}
	}
	return out
}

// deadNode adds a node whose kubelet is gone: the DaemonSet has a pod there, which ran.
func deadNode(t *testing.T, node *testnode.Node) {
	t.Helper()
	clients := clientset(t, node)
	room := corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("1"), corev1.ResourceMemory: resource.MustParse("1Gi"), corev1.ResourcePods: resource.MustParse("10"),
	}
	_, err := clients.CoreV1().Nodes().Create(t.Context(), &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "dead", Labels: map[string]string{corev1.LabelOSStable: "linux"}},
		Status:     corev1.NodeStatus{Capacity: room, Allocatable: room},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the dead node has an agent's pod", func() error {
		pods, err := clients.CoreV1().Pods("memqos").List(t.Context(), metav1.ListOptions{LabelSelector: agents, FieldSelector: "spec.nodeName=dead"})
		if err != nil {
			return err
		}
		if len(pods.Items) != 1 {
			return fmt.Errorf("%d pods", len(pods.Items))
		}
		pod := &pods.Items[0]
		pod.Status.Phase, pod.Status.PodIP, pod.Status.PodIPs = corev1.PodRunning, "192.0.2.1", []corev1.PodIP{{IP: "192.0.2.1"}}
		_, err = clients.CoreV1().Pods("memqos").UpdateStatus(t.Context(), pod, metav1.UpdateOptions{})
		return err
	})
}

// TestSee: of agents that helm has installed, kubectl memqos and the status page say
// what the files of a real node say.
func TestSee(t *testing.T) {
	h := newHelm(t, testnode.Options{})
	node := h.node
	binary := filepath.Join(t.TempDir(), "kubectl-memqos")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", binary, root+"/cmd/memqos").CombinedOutput(); err != nil {
		t.Fatalf("build memqos: %v\n%s", err, out)
	}
	apply(t, node, besidePods("calm", "busy"))
	h.install(fmt.Sprintf("--set-json=config.memoryThrottlingFactor=%v", stallFactor), "--set=config.statusBindAddress=:9812,rbac.viewer=true")
	if err := node.Apply(t.Context(), []byte(viewerObjects)); err != nil {
		t.Fatal(err)
	}
	h.test()
	deadNode(t, node)
	kubeconfig, err := node.Kubeconfig("viewer")
	if err != nil {
		t.Fatal(err)
	}
	v := &viewer{t, binary, kubeconfig}

	eventually(t, "top shows the values of the files", func() error {
		out, _, err := v.try("top", "-A", "-o", "json")
		if err != nil {
			return err
		}
		var list struct {
			Items      []status.NodeStatus
			Unanswered map[string]string
		}
		if err := json.Unmarshal([]byte(out), &list); err != nil {
			return err
		}
		if len(list.Items) != 1 || list.Unanswered["dead"] == "" {
			return fmt.Errorf("%d nodes answered; unanswered: %v", len(list.Items), list.Unanswered)
		}
		cgroups, err := node.Cgroups(t.Context())
		if err != nil {
			return err
		}
		shown := actual(&list.Items[0])
		if len(shown) < 8 {
			return fmt.Errorf("only %d cgroups", len(shown))
		}
		want := maps.Clone(cgroups)
		maps.DeleteFunc(want, func(cgroup string, _ map[string]string) bool { return shown[cgroup] == nil })
		return errors.Join(same(see.Differences(want, shown)), same(missing(shown, cgroups)))
	})
	out, errOut, err := v.try("top", "-A")
	if err != nil {
		t.Fatal(err)
	}
	v.contains(out, "calm", "Fulfilled")
	v.contains(errOut, "node dead:")
	v.contains(v.run("explain", "pod", "calm"), "request 16Mi + 0.35 x (limit 64Mi - request)", "Fulfilled", "by memqos", "memoryThrottlingFactor  0.5:")
	v.contains(v.run("diff", "-A", "--emulation-version", "1.37"), "memory.low", "(kubepods)", "default/calm")
	v.contains(v.run("explain", "pod", h.agent().Name, "-n", "memqos"), "left alone: the kernel lets no agent write")
	out, _, err = v.try("doctor")
	v.contains(out, "served: kernel", "cgroups hold what is wanted", "dead", "FAIL")
	if err == nil {
		t.Error("doctor is content with a dead node")
	}
	if h.inspect().Agent == nil {
		t.Error("inspect did not ask the agent")
	}

	testSeePage(t, h)

	// A stalled pod.
	atHigh(t, node, "grower")
	eventually(t, "explain says that it was let go", func() error {
		for _, c := range v.node("explain", "pod", "grower").Cgroups {
			if c.Container == "app" && c.Verdict == status.Relaxed && c.Relaxed != nil && c.Throttled != nil && int64(c.Relaxed.Planned) == stallHigh {
				return nil
			}
		}
		return errors.New("it does not")
	})
	v.contains(v.run("explain", "pod", "grower"), "raised by the stall guard", "throttled: ", "Relaxed")
	v.contains(v.run("top"), "Relaxed")
	out, _, _ = v.try("doctor")
	v.contains(out, "let go")

	// A value that somebody else keeps writing.
	busy := cgroupOf(t, node, containerID(t, node, "default/busy"))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = node.Run(ctx, "sh", "-c", `i=0; while [ $i -lt 300 ]; do i=$((i+1)); echo $((40000000+i*4096)) > "/sys/fs/cgroup/$0/memory.high"; sleep 0.5; done`, busy)
	}()
	// At first it is repaired so soon that it may not be seen.
	for command, words := range map[string][]string{
		"explain pod busy": {"WANTED", "by foreign", "Drifted"},
		"top":              {"Drifted"},
		"doctor":           {"do not hold what is wanted"},
		"diff":             {"default/busy", "memory.high"},
	} {
		eventually(t, command+" shows the drift", func() error {
			text, _, _ := v.try(strings.Fields(command)...) // doctor is not content with the dead node
			for _, word := range words {
				if !strings.Contains(text, word) {
					return fmt.Errorf("there is no %q", word)
				}
			}
			return nil
		})
	}
	if dir := os.Getenv("MEMQOS_IMAGES"); dir != "" {
		eventually(t, "a terminal shows the drift", func() error { return v.screen(filepath.Join(dir, "top.txt"), "top", "Drifted") })
	}
	cancel()
	<-done

	// A stopped agent.
	sh(t, node, "pkill -STOP -x memqos")
	_, errOut, err = v.try("top", "-A")
	if err == nil {
		t.Error("top is content with no answer at all")
	}
	v.contains(errOut, "node "+node.Name()+": no answer", "node dead:")
	if s := h.inspect(); s.Agent != nil || len(s.Cgroups) < 8 {
		t.Errorf("inspect without an agent shows %d cgroups", len(s.Cgroups))
	}
	sh(t, node, "pkill -CONT -x memqos")
	v.contains(v.run("top"), "calm", "grower")

	// None at all.
	h.run("uninstall", "memqos", "--namespace=memqos", "--wait", "--timeout=5m")
	eventually(t, "top says that there are no agents", func() error {
		_, errOut, err := v.try("top", "-A")
		if err == nil || !strings.Contains(errOut, "there are no agents") {
			return fmt.Errorf("it says %q", errOut)
		}
		return nil
	})
}

// missing lists cgroups that are shown and not there.
func missing(shown, there map[string]map[string]string) (all []string) {
	for cgroup := range shown {
		if there[cgroup] == nil {
			all = append(all, cgroup+" is shown and not there")
		}
	}
	return all
}

// testSeePage looks at the page of the real node. MEMQOS_IMAGES is a directory for
// pictures.
func testSeePage(t *testing.T, h helm) {
	t.Helper()
	node := h.node
	address, err := node.Forward(net.JoinHostPort(h.agent().Status.PodIP, "9812"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop, err := browser.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	for i, look := range see.Looks {
		eventually(t, look.Name+" shows the values of the files", func() error {
			if err := chromedp.Run(ctx, see.Look(i), chromedp.Navigate("http://"+address+"/"), chromedp.WaitReady("#pods")); err != nil {
				return err
			}
			shown, err := see.Shown(ctx)
			if err != nil {
				return err
			}
			cgroups, err := node.Cgroups(t.Context())
			if err != nil {
				return err
			}
			if len(shown) < 8 {
				return fmt.Errorf("only %d cgroups", len(shown))
			}
			want := maps.Clone(cgroups)
			maps.DeleteFunc(want, func(cgroup string, _ map[string]string) bool { return shown[cgroup] == nil })
			return same(see.Differences(want, shown))
		})
		if n, err := see.Overflow(ctx); err != nil || n > 0 {
			t.Errorf("%s: %d pixels too wide (%v)", look.Name, n, err)
		}
		if dir := os.Getenv("MEMQOS_IMAGES"); dir != "" {
			var png []byte
			err := chromedp.Run(ctx, chromedp.Evaluate(`document.querySelector("details.pod").open = true`, nil), chromedp.CaptureScreenshot(&png))
			if err == nil {
				err = os.WriteFile(filepath.Join(dir, look.Name+".png"), png, 0o644)
			}
			if err != nil {
				t.Error(err)
			}
		}
	}
}
