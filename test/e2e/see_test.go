//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/memqos/memqos/hack/browser"
	"github.com/memqos/memqos/hack/testnode"
	"github.com/memqos/memqos/status"
	"github.com/memqos/memqos/test/see"
)

// seeObjects stand for what the chart makes: a pod at the agent's address with its
// labels and port, since the agent is a service of the node here; and a second node
// that is dead. The viewer may do what deploy/rbac-viewer.yaml says and no more.
const seeObjects = `
apiVersion: v1
kind: Pod
metadata: {name: memqos-live, namespace: memqos, labels: {app.kubernetes.io/name: memqos, app.kubernetes.io/component: agent}}
spec:
  terminationGracePeriodSeconds: 1
  hostNetwork: true
  containers:
  - name: memqos
    image: docker.io/memqos/workload:test
    imagePullPolicy: Never
    args: [sleep]
    ports: [{name: status, containerPort: 9812}]
`

const deadObjects = `
apiVersion: v1
kind: Node
metadata: {name: dead}
---
apiVersion: v1
kind: Pod
metadata: {name: memqos-dead, namespace: memqos, labels: {app.kubernetes.io/name: memqos, app.kubernetes.io/component: agent}}
spec:
  nodeName: dead
  containers:
  - name: memqos
    image: docker.io/memqos/workload:test
    ports: [{name: status, containerPort: 9812}]
`

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

// TestSee: kubectl memqos and the status page say what the files of a real node say.
func TestSee(t *testing.T) {
	node := bareNode(t, testnode.Options{Kubernetes: "1.27.4", CgroupDriver: "systemd"})
	apply(t, node, besidePods("calm", "busy"))
	agent := installAgent(t, node, fmt.Sprintf("memoryThrottlingFactor: %v\nstatusBindAddress: \":9812\"\n", stallFactor))
	role, err := os.ReadFile(filepath.Join(root, "deploy", "rbac-viewer.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, objects := range []string{string(role), viewerObjects, deadObjects} {
		if err := node.Apply(t.Context(), []byte(objects)); err != nil {
			t.Fatal(err)
		}
	}
	apply(t, node, []byte(seeObjects))
	kubeconfig, err := node.Kubeconfig("viewer")
	if err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(t.TempDir(), "kubectl-memqos")
	if err := os.Symlink(filepath.Join(node.Dir(), "memqos"), binary); err != nil {
		t.Fatal(err)
	}
	v := &viewer{t, binary, kubeconfig}

	// Two nodes, the other of which is dead.
	dead, err := clientset(t, node).CoreV1().Pods("memqos").Get(t.Context(), "memqos-dead", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	dead.Status.Phase, dead.Status.PodIP, dead.Status.PodIPs = corev1.PodRunning, "192.0.2.1", []corev1.PodIP{{IP: "192.0.2.1"}}
	if _, err := clientset(t, node).CoreV1().Pods("memqos").UpdateStatus(t.Context(), dead, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
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
	out, _, err = v.try("doctor")
	v.contains(out, "served: kernel", "dead", "FAIL")
	if err == nil {
		t.Error("doctor is content with a dead node")
	}
	inspected, err := agent.Inspect(t.Context(), "json")
	if err != nil {
		t.Fatal(err)
	}
	if s, err := status.Parse([]byte(inspected)); err != nil || s.Agent == nil {
		t.Errorf("inspect did not ask the agent (%v)", err)
	}

	testSeePage(t, node)

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
	eventually(t, "the value is shown as drifted", func() error {
		text, _, err := v.try("explain", "pod", "busy")
		if err == nil && (!strings.Contains(text, "WANTED") || !strings.Contains(text, "by foreign") || !strings.Contains(text, "Drifted")) {
			err = errors.New("it is not")
		}
		return err
	})
	v.contains(v.run("top"), "Drifted")
	out, _, _ = v.try("doctor")
	v.contains(out, "do not hold what is wanted")
	v.contains(v.run("diff"), "default/busy", "memory.high")
	cancel()
	<-done

	// A stopped agent.
	if err := agent.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, errOut, err = v.try("top", "-A")
	if err == nil {
		t.Error("top is content with no agent at all")
	}
	v.contains(errOut, "node "+node.Name()+": no answer", "node dead:")
	if out, err := agent.Inspect(t.Context(), "json"); err != nil {
		t.Error(err)
	} else if s, err := status.Parse([]byte(out)); err != nil || s.Agent != nil || len(s.Cgroups) < 8 {
		t.Errorf("inspect without an agent: %v, %d bytes", err, len(out))
	}
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
func testSeePage(t *testing.T, node *testnode.Node) {
	t.Helper()
	address, err := node.Forward(9812)
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
