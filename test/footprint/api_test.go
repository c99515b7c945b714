//go:build e2e

package footprint

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/memqos/memqos/hack/testnode"
)

// scaleGroup are the agents of TestScale: they have the rights, and the API server's
// flow control sees them, as those of service accounts.
const scaleGroup = "system:serviceaccounts:memqos"

// TestScale runs MEMQOS_AGENTS (200) agents, one for each fake node, against one API
// server of each version, and counts what they ask of it: at the start, while nothing
// happens for MEMQOS_IDLE (1m), when a pod of each node changes, and when the API
// server comes back. docs/scale.md has what it logs.
func TestScale(t *testing.T) {
	n, idle := 200, time.Minute
	var err error
	if s := os.Getenv("MEMQOS_AGENTS"); s != "" {
		if n, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	if s := os.Getenv("MEMQOS_IDLE"); s != "" {
		if idle, err = time.ParseDuration(s); err != nil {
			t.Fatal(err)
		}
	}
	binary := build(t, "agent")
	// The agents are not root, and the directory above the test's own is root's alone.
	if err := os.Chmod(filepath.Dir(filepath.Dir(binary)), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, version := range []string{"1.27.4", "1.37.1"} {
		t.Run(version, func(t *testing.T) { scale(t, version, binary, n, idle) })
	}
}

func scale(t *testing.T, version, binary string, n int, idle time.Duration) {
	plane, dir := startPlane(t, version)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	config := plane.RESTConfig()
	config.QPS, config.Burst = 1000, 1000
	clients, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	cluster, _ := giveRights(t, clients)
	binding := &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "scale"},
		RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: cluster.Name}, Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "Group", Name: scaleGroup}}}
	if _, err := clients.RbacV1().ClusterRoleBindings().Create(t.Context(), binding, metav1.CreateOptions{}); err != nil {
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
	alone := serverUse(t, plane)
	began := time.Now()
	for i := range n {
		own := filepath.Join(dir, strconv.Itoa(i))
		emptyTree(t, own, strconv.Itoa(256<<30))
		runAs(t, i, own, binary, kubeconfig(t, plane, own, fmt.Sprintf("agent-%d", i), "system:serviceaccounts", scaleGroup), fmt.Sprintf("node-%d", i),
			agentConfig(t, own, 21000+i), own+"/cgroup")
	}
	allReady := func() {
		t.Helper()
		for i := range n {
			eventually(t, func() error { return ready(fmt.Sprintf("http://127.0.0.1:%d/readyz", 21000+i)) })
		}
	}
	allReady()
	t.Logf("%d agents were ready %.0f s after the first was started", n, time.Since(began).Seconds())
	// What came since the stage before, by verb and path. Nothing but what is allowed
	// may have, and nothing was refused, but by an API server that has not read its
	// roles yet.
	told, starting := 0, false
	stage := func(name string, allowed ...string) map[string]int {
		t.Helper()
		all := agentRequests(t, plane)
		now := all[told:]
		told = len(all)
		count, codes := map[string]int{}, map[int]int{}
		for _, r := range now {
			count[r.what()]++
			codes[r.ResponseStatus.Code]++
			if !slices.Contains(allowed, r.what()) || r.ResponseStatus.Code == http.StatusForbidden && !starting {
				t.Errorf("%s: an agent asked for %s: %d", name, r.RequestURI, r.ResponseStatus.Code)
			}
		}
		use := serverUse(t, plane)
		t.Logf("%s, all %d agents: %v, answers %v; at most %d in a second, the last %.1f s after the first; API server %s", name, n, count, codes, busiest(now), spread(now), use.since(alone))
		return count
	}
	const list, watch = "list /api/v1/pods", "watch /api/v1/pods"
	start := stage("start", list, watch)
	uris := map[string]int{}
	for _, r := range agentRequests(t, plane) {
		uris[r.shape()]++
	}
	t.Logf("start, as asked: %v", uris)
	if start[list]+start[watch] < n || start[list]+start[watch] > 3*n {
		t.Errorf("at the start %d agents asked %d times, want each at least once, three times at most", n, start[list]+start[watch])
	}

	time.Sleep(idle)
	stage("idle for "+idle.String(), watch)

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
	from := time.Now()
	alone, starting = usage{}, true // another process
	eventually(t, func() error {
		watching := map[string]bool{}
		for _, r := range agentRequests(t, plane)[told:] {
			if r.Verb == "watch" && r.ResponseStatus.Code == http.StatusOK {
				watching[r.User.Username] = true
			}
		}
		if len(watching) < n {
			return fmt.Errorf("%d of %d agents watch again", len(watching), n)
		}
		return nil
	})
	t.Logf("all agents watched again %.0f s after the API server was ready", time.Since(from).Seconds())
	time.Sleep(5 * time.Second)
	stage("the API server is back", list, watch)
	allReady() // an agent that had ended would not be
}

// request is what an audit event says.
type request struct {
	Verb, RequestURI, Stage  string
	RequestReceivedTimestamp time.Time
	User                     struct{ Username string }
	ResponseStatus           struct{ Code int }
}

func (r *request) what() string {
	path, _, _ := strings.Cut(r.RequestURI, "?")
	return r.Verb + " " + path
}

// shape is the request without what differs from agent to agent.
func (r *request) shape() string {
	path, query, _ := strings.Cut(r.RequestURI, "?")
	values, err := url.ParseQuery(query)
	if err != nil {
		return r.RequestURI
	}
	for name := range values {
		switch name {
		case "fieldSelector":
			values[name] = []string{"spec.nodeName=N"}
		case "timeoutSeconds", "resourceVersion":
			if values[name][0] != "0" {
				values[name] = []string{"N"}
			}
		}
	}
	unescaped, err := url.QueryUnescape(values.Encode())
	if err != nil {
		return r.RequestURI
	}
	return fmt.Sprintf("%s %s?%s: %d", r.Verb, path, unescaped, r.ResponseStatus.Code)
}

// agentRequests are what all users agent-N have asked for, in the order of the log.
func agentRequests(t *testing.T, plane *testnode.ControlPlane) (all []request) {
	t.Helper()
	for line := range strings.Lines(read(t, plane.AuditLog())) {
		var r request
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			break // the last line may be half written
		}
		// A watch is told of as it begins, unless it is refused, and once more at its end; any other request at its end.
		began := r.Verb == "watch" && r.ResponseStatus.Code == http.StatusOK
		if strings.HasPrefix(r.User.Username, "agent-") && began == (r.Stage == "ResponseStarted") {
			all = append(all, r)
		}
	}
	return all
}

// busiest is the most requests that came within one second.
func busiest(requests []request) (most int) {
	at := times(requests)
	first := 0
	for last := range at {
		for at[last].Sub(at[first]) > time.Second {
			first++
		}
		most = max(most, last-first+1)
	}
	return most
}

// spread is the time from the first request to the last, in seconds.
func spread(requests []request) float64 {
	at := times(requests)
	if len(at) == 0 {
		return 0
	}
	return at[len(at)-1].Sub(at[0]).Seconds()
}

func times(requests []request) (at []time.Time) {
	for i := range requests {
		at = append(at, requests[i].RequestReceivedTimestamp)
	}
	slices.SortFunc(at, time.Time.Compare)
	return at
}

// usage is what the API server has used.
type usage struct {
	cpu       time.Duration
	anonymous int64 // KiB
}

func serverUse(t *testing.T, plane *testnode.ControlPlane) usage {
	t.Helper()
	p := &process{&exec.Cmd{Process: &os.Process{Pid: plane.APIServerPID()}}}
	_, anonymous := p.memory(t)
	return usage{p.cpu(t), anonymous}
}

func (u usage) since(before usage) string {
	return fmt.Sprintf("used %.1f s of processor time since it was without agents, anonymous memory %.0f MiB (%.0f before)", (u.cpu - before.cpu).Seconds(), mib(u.anonymous), mib(before.anonymous))
}

// runAs starts an agent as a user of its own, who owns its directory: what the kernel
// counts by user, inotify instances above all, a node has for itself.
func runAs(t *testing.T, i int, dir, binary string, args ...string) {
	t.Helper()
	uid := 200000 + i
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Chown(path, uid, uid)
	})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	start(t, cmd)
}

func startPlane(t *testing.T, version string) (plane *testnode.ControlPlane, dir string) {
	t.Helper()
	plane, err := testnode.StartControlPlane(t.Context(), version, t.Output())
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
