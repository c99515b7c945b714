//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/memqos/memqos/hack/nodeagent"
	"github.com/memqos/memqos/hack/testnode"
	"github.com/memqos/memqos/test/conformance"
)

const root = "../.."

func read(t *testing.T, manifest string) []byte {
	t.Helper()
	data, err := conformance.Manifest(manifest)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// bareNode boots a node. It is stopped, and its logs are kept if the test failed,
// when the test ends.
func bareNode(t *testing.T, o testnode.Options) *testnode.Node {
	t.Helper()
	o.Log = t.Output()
	node, err := testnode.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			dir, err := node.CollectLogs(ctx)
			t.Logf("logs of the node are in %s (%v)", dir, err)
		}
		if err := node.Stop(); err != nil {
			t.Error(err)
		}
	})
	return node
}

// awaitOthers creates the pods that never come to run all of their containers, and
// waits for them and for the static ones.
func awaitOthers(t *testing.T, node *testnode.Node) {
	t.Helper()
	for _, name := range []string{"init-running.yaml", "refused.yaml"} {
		if err := node.Apply(t.Context(), read(t, name)); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the static pods and the init container run, and a pod is refused", func() error {
		pods := listPods(t, node)
		for _, pod := range []string{"default/static-burstable-" + node.Name(), "kube-system/static-guaranteed-" + node.Name(), "default/init-running"} {
			if p := findPod(pods, pod); p == nil || !anyRunning(p) {
				return fmt.Errorf("pod %s does not run", pod)
			}
		}
		if p := findPod(pods, "default/too-large"); p == nil || p.Status.Phase != corev1.PodFailed || p.Status.Reason != "OutOfmemory" {
			return fmt.Errorf("the pod that is larger than the node is not refused: %+v", p)
		}
		return nil
	})
}

// atOnce is how many pods may be starting at a time. All at once would keep an
// emulated node from starting any of them in the time that the kubelet gives one.
const atOnce = 6

// apply creates objects and waits until their pods run.
func apply(t *testing.T, node *testnode.Node, manifests []byte) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Minute)
	defer cancel()
	docs := bytes.Split(manifests, []byte("\n---\n"))
	for i, doc := range docs {
		if err := node.Apply(ctx, doc); err != nil {
			t.Fatal(err)
		}
		if i >= atOnce {
			if err := node.WaitRunning(ctx, docs[i-atOnce]); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := node.WaitRunning(ctx, manifests); err != nil {
		t.Fatal(err)
	}
}

// installAgent puts memqos on the node, with a full pass every 15 s, and starts it.
func installAgent(t *testing.T, node *testnode.Node, extra string) *nodeagent.Agent {
	t.Helper()
	agent, err := nodeagent.Install(t.Context(), node, root, `
apiVersion: memqos.io/v1alpha1
kind: MemoryQoSConfiguration
resyncPeriod: 15s
rails: {systemReserve: 0, reclaimMargin: 0} # as a kubelet
logging: {verbosity: 2}
`+extra)
	if err != nil {
		t.Fatal(err)
	}
	start(t, agent)
	return agent
}

func start(t *testing.T, agent *nodeagent.Agent) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	if err := agent.Start(ctx); err != nil {
		t.Fatal(err)
	}
}

func clientset(t *testing.T, node *testnode.Node) kubernetes.Interface {
	t.Helper()
	c, err := kubernetes.NewForConfig(node.RESTConfig())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// wantEvent waits for an event about an object.
func wantEvent(t *testing.T, node *testnode.Node, kind, name, reason string) {
	t.Helper()
	eventually(t, "an event "+reason+" on "+kind+" "+name, func() error {
		list, err := clientset(t, node).CoreV1().Events("").List(t.Context(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		var have []string
		for _, e := range list.Items {
			if e.InvolvedObject.Kind == kind && e.InvolvedObject.Name == name {
				if e.Reason == reason {
					t.Logf("event %s: %s", reason, e.Message)
					return nil
				}
				have = append(have, e.Reason)
			}
		}
		return fmt.Errorf("it has %s", strings.Join(have, ", "))
	})
}

func listPods(t *testing.T, node *testnode.Node) []corev1.Pod {
	t.Helper()
	list, err := clientset(t, node).CoreV1().Pods("").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return list.Items
}

func findPod(pods []corev1.Pod, name string) *corev1.Pod {
	for i := range pods {
		if pods[i].Namespace+"/"+pods[i].Name == name {
			return &pods[i]
		}
	}
	return nil
}

func anyRunning(pod *corev1.Pod) bool {
	for _, statuses := range [][]corev1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses} {
		for i := range statuses {
			if statuses[i].State.Running != nil {
				return true
			}
		}
	}
	return false
}

// eventually calls check until it returns nil, for as long as a slow machine
// could need.
func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(4 * time.Minute)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) || t.Context().Err() != nil {
			t.Fatalf("%s: not within 4 minutes: %v", what, err)
		}
		time.Sleep(500 * time.Millisecond)
	}
}

// same returns an error that lists differences, if there are any.
func same(diff []string) error {
	if len(diff) == 0 {
		return nil
	}
	return fmt.Errorf("%d differences:\n%s", len(diff), strings.Join(diff, "\n"))
}
