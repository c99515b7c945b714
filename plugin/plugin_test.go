package plugin

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"

	"github.com/memqos/memqos/config"
	"github.com/memqos/memqos/memory"
	"github.com/memqos/memqos/qos"
	"github.com/memqos/memqos/status"
)

// api is an API server with agents behind its pod proxy.
type api struct {
	nodes    int
	unready  int                       // the first of them have an agent that is not Ready
	answers  func(*http.Request, int)  // before the agent of a node answers; may take its time
	objects  map[string]runtime.Object // what else there is, by URI
	status   func(string) *status.NodeStatus
	requests atomic.Int32
	mu       sync.Mutex
	busy     int
	most     int
}

func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.requests.Add(1)
	w.Header().Set("Content-Type", "application/json")
	if r.URL.Path == "/api/v1/namespaces/memqos/pods" {
		list := corev1.PodList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"}}
		for i := range a.nodes {
			list.Items = append(list.Items, agentPod(nodeName(i), i >= a.unready))
		}
		_ = json.NewEncoder(w).Encode(list)
		return
	}
	if o := a.objects[r.URL.RequestURI()]; o != nil {
		_ = json.NewEncoder(w).Encode(o)
		return
	}
	name, rest, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/api/v1/namespaces/memqos/pods/http:memqos-"), ":")
	i, err := strconv.Atoi(strings.TrimPrefix(name, "node-"))
	if rest != "9812/proxy/status" || r.Method != http.MethodGet || err != nil {
		http.Error(w, "there is nothing at "+r.URL.RequestURI(), http.StatusNotFound)
		return
	}
	a.mu.Lock()
	a.busy++
	a.most = max(a.most, a.busy)
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		a.busy--
		a.mu.Unlock()
	}()
	if a.answers != nil {
		a.answers(r, i)
	}
	if r.Context().Err() != nil {
		return
	}
	tell := nodeStatus
	if a.status != nil {
		tell = a.status
	}
	_ = json.NewEncoder(w).Encode(tell(name))
}

func nodeName(i int) string { return fmt.Sprintf("node-%03d", i) }

func agentPod(node string, ready bool) corev1.Pod {
	condition := corev1.PodCondition{Type: corev1.PodReady, Status: corev1.ConditionFalse}
	if ready {
		condition.Status = corev1.ConditionTrue
	}
	return corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "memqos", Name: "memqos-" + node},
		Spec:       corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "status", ContainerPort: 9812}}}}},
		Status:     corev1.PodStatus{PodIP: "10.0.0.1", Conditions: []corev1.PodCondition{condition}},
	}
}

func nodeStatus(node string) *status.NodeStatus {
	c, err := config.Load("")
	if err != nil {
		panic(err)
	}
	values := memory.Values{memory.Min: 64 << 20, memory.Low: 0, memory.High: 127504384, memory.Max: 128 << 20}
	now := time.Now()
	return &status.NodeStatus{
		TypeMeta: metav1.TypeMeta{APIVersion: status.APIVersion, Kind: status.Kind}, Node: node, Time: now, AllocatableBytes: 8 << 30,
		Machine: status.Machine{Kernel: "6.1.0", CgroupDriver: "systemd", PageSize: 4096, Pressure: true, CapacityBytes: 9 << 30},
		Agent:   &status.Agent{Version: "test", Started: now, LastPass: &now, Configuration: c, Watching: true},
		Cgroups: []status.Cgroup{
			{Level: qos.LevelPod, Namespace: "shop", Pod: "web-" + node, Verdict: status.Fulfilled, Actual: values},
			{Level: qos.LevelContainer, Namespace: "shop", Pod: "web-" + node, Container: "app", Verdict: status.Fulfilled, Wanted: values, Actual: values, UsageBytes: 96 << 20},
		},
	}
}

func connect(t testing.TB, a *api) *cluster {
	t.Helper()
	server := httptest.NewServer(a)
	t.Cleanup(server.Close)
	clients, err := corev1client.NewForConfig(&rest.Config{Host: server.URL, QPS: -1})
	if err != nil {
		t.Fatal(err)
	}
	return &cluster{clients: clients, namespace: "memqos", selector: "a=b", timeout: time.Hour, patience: time.Hour}
}

// asked lists the agents and asks them.
func asked(t *testing.T, c *cluster) []answer {
	t.Helper()
	agents, err := c.agents(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	return c.ask(t.Context(), agents, "", "")
}

// 200 nodes: each is asked once, 32 at a time.
func TestTwoHundredNodes(t *testing.T) {
	a := &api{nodes: 200, answers: func(*http.Request, int) { time.Sleep(5 * time.Millisecond) }}
	for _, x := range asked(t, connect(t, a)) {
		if x.Err != nil {
			t.Errorf("node %s: %v", x.Node, x.Err)
		}
	}
	if got := a.requests.Load(); got != 201 {
		t.Errorf("%d requests, want one for the list and one for each node", got)
	}
	if a.most > inFlight || a.most < 2 {
		t.Errorf("%d requests at the same time, want at most %d", a.most, inFlight)
	}
	t.Logf("200 nodes: %d requests, at most %d at the same time", a.requests.Load(), a.most)
}

// 40 of 200 nodes are dead: the others have all been asked while those have not
// answered, whether the API server knows of it already (their agents are not Ready) or
// not. What is asked at the same time stays bounded.
func TestTheDeadDelayNobody(t *testing.T) {
	const dead = 40
	for _, tc := range []struct {
		name     string
		unready  int
		patience time.Duration
		most     int
	}{
		{"not Ready", dead, time.Hour, inFlight + dead},
		{"Ready", 0, 10 * time.Millisecond, inFlight + lateInFlight},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var living atomic.Int32
			all := make(chan struct{})
			a := &api{nodes: 200, unready: tc.unready, answers: func(_ *http.Request, i int) {
				if i >= dead {
					if living.Add(1) == 200-dead {
						close(all)
					}
					return
				}
				select {
				case <-all:
				case <-time.After(time.Minute):
					t.Errorf("node %s has waited for a minute, and %d others have been asked", nodeName(i), living.Load())
				}
			}}
			c := connect(t, a)
			c.patience = tc.patience
			for _, x := range asked(t, c) {
				if x.Err != nil {
					t.Errorf("node %s: %v", x.Node, x.Err)
				}
			}
			if got := a.requests.Load(); got != 201 {
				t.Errorf("%d requests, want one for the list and one for each node", got)
			}
			if a.most > tc.most {
				t.Errorf("%d requests at the same time, want at most %d", a.most, tc.most)
			}
		})
	}
}

// Who is not Ready and does not answer is given up after the patience, and named. Who
// is Ready has the whole timeout.
func TestTheDeadAreNamed(t *testing.T) {
	a := &api{nodes: 10, unready: 3, answers: func(r *http.Request, i int) {
		if i < 3 {
			<-r.Context().Done()
		}
	}}
	c := connect(t, a)
	c.patience = 10 * time.Millisecond
	answers := asked(t, c)
	var b bytes.Buffer
	if err := complain(&b, answers); err != nil {
		t.Error(err)
	}
	want := `node node-000: no answer within 10ms (not ready)
node node-001: no answer within 10ms (not ready)
node node-002: no answer within 10ms (not ready)
`
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	// The user may want less.
	c.timeout = time.Millisecond
	c.patience = time.Hour
	if err := asked(t, c)[0].Err; err == nil || err.Error() != "no answer within 1ms" {
		t.Errorf("with a timeout that is shorter: %v", err)
	}
	// Where none is Ready there is nobody to delay.
	a = &api{nodes: 2, unready: 2}
	c = connect(t, a)
	c.patience = time.Nanosecond // nobody answers so soon
	for _, x := range asked(t, c) {
		if x.Err != nil {
			t.Errorf("node %s: %v", x.Node, x.Err)
		}
	}
}

// How long it takes until 200 nodes have answered, or have been given up as by default.
func BenchmarkTwoHundredNodes(b *testing.B) {
	for _, bc := range []struct {
		name          string
		dead, unready int
	}{{"all-answer", 0, 0}, {"40-dead-not-Ready", 40, 40}, {"40-dead-still-Ready", 40, 0}} {
		b.Run(bc.name, func(b *testing.B) {
			c := connect(b, &api{nodes: 200, unready: bc.unready, answers: func(r *http.Request, i int) {
				if i < bc.dead {
					<-r.Context().Done()
				}
				time.Sleep(5 * time.Millisecond)
			}})
			c.timeout, c.patience = 5*time.Second, patience
			for b.Loop() {
				agents, err := c.agents(b.Context(), "")
				if err != nil {
					b.Fatal(err)
				}
				answers := c.ask(b.Context(), agents, "", "")
				if n := len(listOf(answers).Items); n != 200-bc.dead {
					b.Fatalf("%d answers, want %d", n, 200-bc.dead)
				}
			}
		})
	}
}

func TestBar(t *testing.T) {
	for _, tc := range []struct {
		min, high, max memory.Value
		usage          uint64
		want           string
	}{
		{0, memory.Unlimited, 100, 50, "[#####.....]"},
		{20, 90, 100, 50, "[##|##....>]"},
		{0, memory.Unlimited, memory.Unlimited, 7, "[##########]"},
		{0, 0, 0, 0, "[>.........]"},
		{100, 100, 100, 100, "[#########>]"},
	} {
		c := &status.Cgroup{Actual: memory.Values{memory.Min: tc.min, memory.High: tc.high, memory.Max: tc.max}, UsageBytes: tc.usage}
		if got := bar(c, 10, false); got != tc.want {
			t.Errorf("min %s high %s max %s usage %d: %s, want %s", tc.min, tc.high, tc.max, tc.usage, got, tc.want)
		}
	}
}

// Colours change no column.
func TestTopInColours(t *testing.T) {
	lines := []line{
		{"n", &status.Cgroup{Pod: "a", Container: "app", Verdict: status.Fulfilled, UsageBytes: 5 << 20, Actual: memory.Values{memory.Max: 10 << 20}}},
		{"n", &status.Cgroup{Pod: "longer", Container: "app", Verdict: status.Drifted, UsageBytes: 5 << 20, Actual: memory.Values{memory.Max: 10 << 20}}},
		{"n", &status.Cgroup{Pod: "b", Verdict: status.Unknown}},
	}
	var plain, coloured bytes.Buffer
	for _, wide := range []bool{false, true} {
		if err := errors.Join(table(&plain, topTable(lines, true, wide, false)), table(&coloured, topTable(lines, true, wide, true))); err != nil {
			t.Fatal(err)
		}
	}
	if plain.String() == coloured.String() {
		t.Error("there are no colours")
	}
	if got := regexp.MustCompile(`\x1b\[\d+m`).ReplaceAllString(coloured.String(), ""); got != plain.String() {
		t.Errorf("with colours:\n%s\nwithout:\n%s", got, plain.String())
	}
}

func TestDiffer(t *testing.T) {
	s := nodeStatus("n")
	pod := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{
		Name: "app", Resources: corev1.ResourceRequirements{
			Requests: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("64Mi")},
			Limits:   corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("128Mi")},
		},
	}}}}
	d := &diff{emulation: "1.37"}
	other, err := d.other(s.Agent.Configuration)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, x := range differ(s, other, []corev1.Pod{pod}, false) {
		got = append(got, fmt.Sprintf("%s %s %s %s", x.Level, x.File, x.From.Human(), x.To.Human()))
	}
	want := "pod memory.min 64Mi 0; pod memory.low 0 64Mi; container memory.min 64Mi 0; container memory.low 0 64Mi"
	if strings.Join(got, "; ") != want {
		t.Errorf("got %q, want %q", got, want)
	}
	// The agent's own container, of which it wants nothing.
	s.Cgroups = append(s.Cgroups, status.Cgroup{
		Level: qos.LevelContainer, Namespace: "shop", Pod: "web", Container: "app", Wanted: memory.Values{},
		Reason: map[memory.File]string{memory.Min: "left alone", memory.Low: "left alone"},
	})
	got = nil
	for _, x := range differ(s, other, []corev1.Pod{pod}, false) {
		got = append(got, fmt.Sprintf("%s %s", x.Level, x.File))
	}
	if want := "pod memory.min; pod memory.low"; strings.Join(got, "; ") != want {
		t.Errorf("beside a container that is left alone: got %q, want %q", got, want)
	}
	if _, err := (&diff{emulation: "9.9"}).other(s.Agent.Configuration); err == nil || !strings.Contains(err.Error(), "emulationVersion") {
		t.Errorf("a release that is none: %v", err)
	}
}

// What a node lacks is said, with what to do.
func TestExamine(t *testing.T) {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}, Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}}}
	for _, tc := range []struct {
		name   string
		change func(*status.NodeStatus)
		grade  Grade
		want   string
	}{
		{"fit", func(*status.NodeStatus) {}, Good, "served: kernel 6.1.0"},
		{"no PSI", func(s *status.NodeStatus) { s.Machine.Pressure = false }, Warn, "psi=1"},
		{"idle", func(s *status.NodeStatus) { s.Agent.Idle = "CgroupV1" }, Bad, "systemd.unified_cgroup_hierarchy=1"},
		{"refused", func(s *status.NodeStatus) { s.Agent.Refused = "mode: x" }, Warn, "not in use: mode: x"},
		{"kubelet", func(s *status.NodeStatus) { s.Agent.LeftToKubelet = []memory.File{memory.High} }, Note, "memory.high"},
		{"polls", func(s *status.NodeStatus) { s.Agent.Watching = false }, Warn, "max_user_watches"},
		{"drifted", func(s *status.NodeStatus) { s.Cgroups[1].Verdict = status.Drifted }, Warn, "1 cgroups do not hold"},
		{"recursiveprot", func(s *status.NodeStatus) { s.Machine.MountOptions = []string{"rw"} }, Note, "memory_recursiveprot"},
	} {
		s := nodeStatus("n")
		tc.change(s)
		found := false
		for _, x := range examine(n, answer{Node: "n", Status: s}) {
			found = found || x.Grade == tc.grade && strings.Contains(x.What+" "+x.Do, tc.want)
		}
		if !found {
			t.Errorf("%s: no %s with %q", tc.name, tc.grade, tc.want)
		}
	}
}

func TestAgo(t *testing.T) {
	now := time.Now()
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 59 * time.Second: "59s", time.Minute: "1m", 2*time.Minute + 50*time.Second: "2m50s", 2*time.Hour + 50*time.Second: "2h1m",
	} {
		if got := ago(now, now.Add(-d)); got != want {
			t.Errorf("%s is shown as %s, want %s", d, got, want)
		}
	}
}

func TestPodName(t *testing.T) {
	for _, tc := range []struct{ args, want string }{{"pod x", "x"}, {"pod/x", "x"}, {"po x", "x"}, {"deploy x", ""}, {"x", ""}, {"pod/x y", ""}} {
		got, err := podName(strings.Fields(tc.args))
		if got != tc.want && err == nil || (err != nil) != (tc.want == "") {
			t.Errorf("%s: %q, %v", tc.args, got, err)
		}
	}
}
