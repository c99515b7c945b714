//go:build e2e

package footprint

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/memqos/memqos/hack/testnode"
)

// TestScale runs MEMQOS_AGENTS (200) agents, one for each fake node, against one API
// server, and counts what they ask of it: at the start, while nothing happens for a
// minute, when a pod of each node changes, and when the API server comes back.
func TestScale(t *testing.T) {
	n := 200
	if s := os.Getenv("MEMQOS_AGENTS"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	binary := build(t, "agent")
	plane, dir := startPlane(t)
	config := plane.RESTConfig()
	config.QPS, config.Burst = 1000, 1000
	clients, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	pods := clients.CoreV1().Pods("default")
	for i := range n {
		pod := newPod(i)
		pod.Spec.NodeName = fmt.Sprintf("node-%d", i)
		if _, err := pods.Create(t.Context(), pod, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	for i := range n {
		own := filepath.Join(dir, strconv.Itoa(i))
		emptyTree(t, own, strconv.Itoa(256<<30))
		run(t, binary, fmt.Sprintf("agent-%d", i), kubeconfig(t, plane, own, fmt.Sprintf("agent-%d", i)), fmt.Sprintf("node-%d", i),
			agentConfig(t, own, 21000+i), own+"/cgroup")
	}
	for i := range n {
		eventually(t, func() error { return ready(fmt.Sprintf("http://127.0.0.1:%d/readyz", 21000+i)) })
	}
	t.Logf("%d agents were ready after %.0f s", n, time.Since(began).Seconds())
	last := agentRequests(t, plane)
	stage := func(name string, allowed ...string) map[string]int {
		t.Helper()
		now := agentRequests(t, plane)
		count := map[string]int{}
		for request, k := range now {
			if k -= last[request]; k > 0 {
				count[request] = k
				if !slices.ContainsFunc(allowed, func(prefix string) bool { return strings.HasPrefix(request, prefix) }) {
					t.Errorf("%s: the agents asked for %s", name, request)
				}
			}
		}
		last = now
		t.Logf("%s, all %d agents: %v", name, n, count)
		return count
	}
	t.Logf("start, all %d agents: %v", n, last)
	const list, watch = "list /api/v1/pods", "watch /api/v1/pods"
	if last[list] != n || len(last) > 2 {
		t.Errorf("at the start %d agents listed pods %d times, and asked for %d kinds of things; want once each, and a list and a watch alone", n, last[list], len(last))
	}

	time.Sleep(time.Minute)
	stage("a minute idle", watch)

	for i := range n {
		patch := fmt.Appendf(nil, `{"metadata":{"labels":{"changed":"%d"}}}`, i)
		if _, err := pods.Patch(t.Context(), newPod(i).Name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(10 * time.Second)
	stage("a change of a pod of each node", watch)

	if err := plane.SetAPIServer(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	time.Sleep(5 * time.Second)
	if err := plane.SetAPIServer(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	time.Sleep(90 * time.Second) // client-go backs off for 30 s at most, with jitter
	if again := stage("the API server is back", list, watch); again[watch] < n {
		t.Errorf("%d agents watch again %d times", n, again[watch])
	}
	for i := range n { // an agent that had given up would not see this
		if err := ready(fmt.Sprintf("http://127.0.0.1:%d/readyz", 21000+i)); err != nil {
			t.Errorf("agent %d: %v", i, err)
		}
	}
}

func startPlane(t *testing.T) (plane *testnode.ControlPlane, dir string) {
	t.Helper()
	plane, err := testnode.StartControlPlane(t.Context(), "1.27.4", t.Output())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := plane.Stop(); err != nil {
			t.Error(err)
		}
	})
	dir, err = os.MkdirTemp("/dev/shm", "memqos-footprint-") //nolint:usetesting // it is to be in memory
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return plane, dir
}

// emptyTree is a node without pods, with this memory.max of kubepods.
func emptyTree(t *testing.T, dir, limit string) {
	t.Helper()
	for name, limit := range map[string]string{"kubepods": limit, "kubepods/burstable": "max", "kubepods/besteffort": "max"} {
		for file, value := range map[string]string{"min": "0", "low": "0", "high": "max", "max": limit, "current": "4096"} {
			write(t, filepath.Join(dir, "cgroup", name), "memory."+file, value+"\n")
		}
	}
}

// agentConfig is that of an agent whose healthz are at a port of 127.0.0.1, and whose
// metrics at the one 1000 above.
func agentConfig(t *testing.T, dir string, port int) string {
	t.Helper()
	return write(t, dir, "config.yaml", fmt.Sprintf(`
apiVersion: memqos.io/v1alpha1
kind: MemoryQoSConfiguration
metricsBindAddress: 127.0.0.1:%d
healthzBindAddress: 127.0.0.1:%d
stateDir: %s/state
bundlePaths: []
`, port+1000, port, dir))
}

// agentRequests counts what all users agent-N have asked for.
func agentRequests(t *testing.T, plane *testnode.ControlPlane) map[string]int {
	t.Helper()
	count := map[string]int{}
	for line := range strings.Lines(read(t, plane.AuditLog())) {
		var event struct {
			Verb, RequestURI, Stage string
			User                    struct{ Username string }
		}
		if err := json.Unmarshal([]byte(line), &event); err != nil {
			break // the last line may be half written
		}
		// A watch that begins is told of at once, any other request at its end.
		if strings.HasPrefix(event.User.Username, "agent-") && (event.Verb == "watch") == (event.Stage == "ResponseStarted") {
			path, _, _ := strings.Cut(event.RequestURI, "?")
			count[event.Verb+" "+path]++
		}
	}
	return count
}
