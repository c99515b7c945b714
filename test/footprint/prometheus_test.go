//go:build e2e

package footprint

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/memqos/memqos/hack/testnode"
)

const chartDir = "../../deploy/helm/memqos"

// TestPrometheus has a real Prometheus scrape two real agents: one that serves a node of
// ordinary files, over HTTPS and to authorized tokens alone, and one that cannot serve
// its node. Things happen on the first. Then every query of the dashboards and every
// recording rule has data, and of the chart's alerts those fire that should and no
// other. With MEMQOS_IMAGES, the dashboards' data are drawn there.
func TestPrometheus(t *testing.T) {
	binary := os.Getenv("PROMETHEUS")
	if binary == "" {
		t.Fatal("PROMETHEUS is not the path of a prometheus: make prometheus")
	}
	agent := build(t, "agent")
	plane, dir := startPlane(t, "1.27.4")
	clients, err := kubernetes.NewForConfig(plane.RESTConfig())
	if err != nil {
		t.Fatal(err)
	}
	giveRights(t, clients)
	scraper := secure(t, clients)
	write(t, dir, "token", scraper)

	const n = 4
	makePods(t, plane, dir, 0, n)
	ports := freePorts(t, 5)
	served, health, idle, idleHealth, web := ports[0], ports[1], ports[2], ports[3], ports[4]
	configuration := func(metrics, health, more string) string {
		return fmt.Sprintf(`
apiVersion: memqos.io/v1alpha1
kind: MemoryQoSConfiguration
metricsBindAddress: %s
healthzBindAddress: %s
statusBindAddress: "0"
resyncPeriod: 5s
bundlePaths: ["%s/bundles/<id>/config.json"]
%s
`, metrics, health, dir, more)
	}
	data, err := plane.Kubeconfig(account, "system:serviceaccounts", "system:serviceaccounts:memqos")
	if err != nil {
		t.Fatal(err)
	}
	api := write(t, dir, "kubeconfig", string(data))
	file := write(t, dir, "config.yaml", configuration(served, health, "metricsSecure: true\ncontainerMetrics: true\nstateDir: "+dir+"/state"))
	run(t, agent, "served", api, nodeName, file, dir+"/cgroup")
	run(t, agent, "idle", api, "elsewhere", write(t, dir, "idle.yaml", configuration(idle, idleHealth, "stateDir: "+dir+"/idle")), dir+"/nowhere")
	for _, address := range []string{health, idleHealth} {
		eventually(t, func() error { return ready("http://" + address + "/readyz") })
	}
	asked(t, clients, "https://"+served+"/metrics", scraper)

	p := startPrometheus(t, binary, dir, web, fmt.Sprintf(`
global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: [alerts.yaml, soon.yaml]
scrape_configs:
- job_name: served
  honor_labels: true
  scheme: https
  tls_config: {insecure_skip_verify: true}
  authorization: {credentials_file: token}
  static_configs: [{targets: ["%s"], labels: {node: %s}}]
- job_name: idle
  honor_labels: true
  static_configs: [{targets: ["%s"], labels: {node: elsewhere}}]
`, served, nodeName, idle))
	began := time.Now()
	eventually(t, func() error {
		up := p.query(t, "up == 1")
		if len(up) != 2 {
			return fmt.Errorf("%d targets are up, want 2; down: %v", len(up), p.query(t, "up == 0"))
		}
		return nil
	})

	s := &stirrer{t: t, dir: dir, plane: plane, clients: clients, n: n}
	s.once()
	stop := s.often()
	defer stop()
	// Queries of rates need two scrapes with the news.
	vars := strings.NewReplacer("$__rate_interval", "30s", "$node", nodeName, "$namespace", "default", "$pod", "web-0")
	dashboards := readDashboards(t)
	queries := 0
	for _, d := range dashboards {
		for _, panel := range d.Panels {
			for _, target := range panel.Targets {
				queries++
				eventually(t, func() error {
					result := p.query(t, vars.Replace(target.Expr))
					if len(result) == 0 || slices.ContainsFunc(result, func(s sample) bool { return math.IsNaN(s.value) }) {
						return fmt.Errorf("%s, %q: %s gives %v", d.Title, panel.Title, target.Expr, result)
					}
					return nil
				})
			}
		}
	}
	t.Logf("%d queries of %d dashboards had data %.0f s after the first scrape", queries, len(dashboards), time.Since(began).Seconds())
	for _, rule := range []string{"node:memqos_writes:rate5m", "node:memqos_time_to_value_seconds:p99_15m"} {
		eventually(t, func() error {
			if len(p.query(t, rule)) == 0 {
				return fmt.Errorf("the recording rule %s has no data", rule)
			}
			return nil
		})
	}
	// Of the emulated release the agent does not manage memory.low.
	eventually(t, func() error {
		of := map[string]int{}
		for _, s := range p.query(t, `count by (pod, container) ({__name__=~"memqos_container_memory_.*"})`) {
			of[s.labels["pod"]+" "+s.labels["container"]] = int(s.value)
			if s.value != 16 {
				return fmt.Errorf("%v has %v series, want 16", s.labels, s.value)
			}
		}
		if len(of) != 2*s.pods() {
			return fmt.Errorf("series of %d containers, want %d", len(of), 2*s.pods())
		}
		return nil
	})

	// The chart's own rules: what waits for nothing fires, the rest is pending.
	wanted := map[string]string{
		"MemqosBundleRefused": "firing", "MemqosNodeUnsupported": "pending", "MemqosConfigRefused": "pending", "MemqosDrift": "pending", "MemqosOverwritten": "pending",
	}
	for _, name := range slices.Collect(maps.Keys(wanted)) {
		wanted["Soon"+name] = "firing"
	}
	eventually(t, func() error {
		got := p.alerts(t)
		if diff := cmp.Diff(wanted, got); diff != "" {
			return fmt.Errorf("alerts (-want +got):\n%s", diff)
		}
		return nil
	})
	t.Logf("alerts: %v", p.alerts(t))
	reviews := 0
	for line := range strings.Lines(read(t, plane.AuditLog())) {
		if strings.Contains(line, `"resource":"tokenreviews"`) && strings.Contains(line, account) {
			reviews++
		}
	}
	scrapes := p.query(t, `count_over_time(up{job="served"}[1h])`)
	t.Logf("%d token reviews, %v scrapes", reviews, scrapes)
	if minutes := int(time.Since(began).Minutes()) + 1; reviews == 0 || reviews > 3+minutes {
		t.Errorf("%d token reviews in %d minutes: want one for each token a minute", reviews, minutes)
	}
	if out := os.Getenv("MEMQOS_IMAGES"); out != "" {
		time.Sleep(time.Minute)
		draw(t, p, dashboards, vars, began, out)
	}
}

// secure gives the agent's account what metricsSecure takes, and returns the token of
// another account that may get /metrics.
func secure(t *testing.T, clients kubernetes.Interface) string {
	t.Helper()
	bind := func(name, account string, rules ...rbacv1.PolicyRule) {
		role := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name}, Rules: rules}
		if _, err := clients.RbacV1().ClusterRoles().Create(t.Context(), role, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		binding := &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: name},
			RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name},
			Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: "memqos", Name: account}}}
		if _, err := clients.RbacV1().ClusterRoleBindings().Create(t.Context(), binding, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	bind("memqos-metrics", "memqos",
		rbacv1.PolicyRule{APIGroups: []string{"authentication.k8s.io"}, Resources: []string{"tokenreviews"}, Verbs: []string{"create"}},
		rbacv1.PolicyRule{APIGroups: []string{"authorization.k8s.io"}, Resources: []string{"subjectaccessreviews"}, Verbs: []string{"create"}})
	bind("scraper", "prometheus", rbacv1.PolicyRule{NonResourceURLs: []string{"/metrics"}, Verbs: []string{"get"}})
	return token(t, clients, "prometheus")
}

func token(t *testing.T, clients kubernetes.Interface, account string) string {
	t.Helper()
	accounts := clients.CoreV1().ServiceAccounts("memqos")
	if _, err := accounts.Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: account}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	request, err := accounts.CreateToken(t.Context(), account, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return request.Status.Token
}

// asked asks for the metrics as somebody who may, and as those who may not.
func asked(t *testing.T, clients kubernetes.Interface, address, may string) {
	t.Helper()
	for _, c := range []struct {
		who, token string
		want       int
	}{
		{"nobody", "", http.StatusUnauthorized},
		{"a stranger", "abc.def.ghi", http.StatusUnauthorized},
		{"an account without the right", token(t, clients, "other"), http.StatusForbidden},
		{"the scraper", may, http.StatusOK},
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address, nil)
		if err != nil {
			t.Fatal(err)
		}
		if c.token != "" {
			req.Header.Set("Authorization", "Bearer "+c.token)
		}
		eventually(t, func() error { // the metrics are served a moment after the health
			resp, err := unverified.Do(req)
			if err != nil {
				return err
			}
			defer resp.Body.Close() //nolint:errcheck // read only
			body, err := io.ReadAll(resp.Body)
			if resp.StatusCode != c.want || strings.Contains(string(body), "memqos_") != (c.want == http.StatusOK) {
				t.Errorf("%s gets %s, want %d: %.100s", c.who, resp.Status, c.want, body)
			}
			return err
		})
	}
	if body, err := get(strings.Replace(address, "https:", "http:", 1)); err == nil {
		t.Errorf("plain HTTP is answered: %.100s", body)
	}
}

// freePorts are addresses of 127.0.0.1 that nobody listens at.
func freePorts(t *testing.T, n int) (addresses []string) {
	t.Helper()
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close() //nolint:errcheck // nothing was sent
		addresses = append(addresses, l.Addr().String())
	}
	return addresses
}

// stirrer makes things happen on the node.
type stirrer struct {
	t       *testing.T
	dir     string
	plane   *testnode.ControlPlane
	clients kubernetes.Interface
	n       int // pods that were there
	more    atomic.Int32
}

// swap puts a file in the place of another at once: nobody reads half of it.
func swap(t *testing.T, dir, name, data string) {
	t.Helper()
	if err := os.Rename(write(t, dir, name+".new", data), filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
}

func (s *stirrer) pods() int { return s.n + int(s.more.Load()) }

func (s *stirrer) container(pod, container int) string {
	return filepath.Join(s.dir, "cgroup", podDir(pod), containerID(pod, container))
}

// once does what happens once.
func (s *stirrer) once() {
	t := s.t
	// A limit that would kill waits.
	write(t, s.container(1, 1), "memory.current", strconv.Itoa(200<<20)+"\n")
	write(t, s.container(1, 1), "memory.max", "max\n")
	// A container is killed at its limit.
	killed := strings.NewReplacer("max 0", "max 3", "oom 0", "oom 1", "oom_kill 0", "oom_kill 1").Replace(noEvents) + "\n"
	write(t, s.container(0, 2), "memory.current", strconv.Itoa(128<<20)+"\n")
	write(t, s.container(0, 2), "memory.events.local", killed)
	write(t, s.container(0, 2), "memory.events", killed)
	// A cgroup whose bundle is that of another.
	liar := containerID(0, 9)
	bundle, err := json.Marshal(map[string]any{
		"annotations": map[string]string{"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.container-name": "c-1", "io.kubernetes.cri.sandbox-id": containerID(0, 0)},
		"linux":       map[string]any{"cgroupsPath": "/kubepods/burstable/podother/" + liar},
	})
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(s.dir, "bundles", liar), "config.json", string(bundle))
	makeCgroup(t, s.dir, podDir(0)+"/"+liar, "max")
	// A mirror pod that claims a place outside.
	pod := newPod(90)
	pod.Name, pod.Annotations = "claims", map[string]string{"kubernetes.io/config.mirror": "x", "kubernetes.io/config.hash": "../../x", "memqos.io/stall-guard": "perhaps"}
	if _, err := s.clients.CoreV1().Pods("default").Create(t.Context(), pod, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	// A configuration that is refused.
	file := filepath.Join(s.dir, "config.yaml")
	write(t, s.dir, "config.yaml", read(t, file)+"mode: Neither\n")
}

// often does, until it is stopped, what happens again and again.
func (s *stirrer) often() (stop func()) {
	ctx, cancel := context.WithCancel(s.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ctx.Err() == nil; i++ {
			// Each file is written too seldom for a contest.
			switch i % 20 {
			case 0:
				write(s.t, s.container(2, 1), "memory.high", "max\n")
			case 10:
				write(s.t, s.container(2, 2), "memory.high", strconv.Itoa(100<<20+i*4096)+"\n")
			}
			write(s.t, s.container(0, 1), "memory.current", strconv.Itoa(90<<20+i%30<<20)+"\n")
			write(s.t, s.container(0, 1), "memory.events", strings.Replace(noEvents, "high 0", fmt.Sprintf("high %d", i*7), 1)+"\n")
			swap(s.t, s.container(0, 1), "memory.pressure", strings.NewReplacer("total=0\nfull", fmt.Sprintf("total=%d\nfull", i*200_000)).Replace(noPressure)+"\n")
			if i%8 == 4 && s.more.Load() < 2 {
				makePods(s.t, s.plane, s.dir, s.pods(), s.pods()+1)
				s.more.Add(1)
			}
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	}()
	return func() { cancel(); <-done }
}

// prometheus is a running one.
type prometheus struct{ url string }

func startPrometheus(t *testing.T, binary, dir, address, configuration string) *prometheus {
	t.Helper()
	rules := read(t, filepath.Join(chartDir, "files", "alerts.yaml"))
	write(t, dir, "alerts.yaml", rules)
	// The same once more, in a hurry and under another name.
	soon := regexp.MustCompile(`for: \d+[mh]`).ReplaceAllString(rules, "for: 1s")
	soon = regexp.MustCompile(`- alert: `).ReplaceAllString(soon, "- alert: Soon")
	soon = regexp.MustCompile(`- record: `).ReplaceAllString(soon, "- record: soon:")
	write(t, dir, "soon.yaml", strings.Replace(soon, "- name: memqos", "- name: soon", 1))
	file := write(t, dir, "prometheus.yaml", configuration)
	start(t, exec.Command(binary, "--config.file="+file, "--storage.tsdb.path="+dir+"/tsdb", "--web.listen-address="+address, "--log.level=warn"))
	p := &prometheus{"http://" + address}
	eventually(t, func() error { return ready(p.url + "/-/ready") })
	return p
}

// sample is one value of a vector.
type sample struct {
	labels map[string]string
	value  float64
}

// ask asks an API of Prometheus.
func (p *prometheus) ask(t *testing.T, path string, values url.Values, into any) {
	t.Helper()
	body, err := get(p.url + "/api/v1/" + path + "?" + values.Encode())
	if err != nil {
		t.Fatalf("%s %v: %v", path, values, err)
	}
	var answer struct {
		Status string
		Data   json.RawMessage
	}
	if err := json.Unmarshal([]byte(body), &answer); err != nil || answer.Status != "success" {
		t.Fatalf("%s %v: %s (%v)", path, values, body, err)
	}
	if err := json.Unmarshal(answer.Data, into); err != nil {
		t.Fatal(err)
	}
}

// value reads a number that is written as a string.
func value(t *testing.T, v any) float64 {
	t.Helper()
	f, err := strconv.ParseFloat(fmt.Sprint(v), 64)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func (p *prometheus) query(t *testing.T, q string) (samples []sample) {
	t.Helper()
	var data struct {
		Result []struct {
			Metric map[string]string
			Value  [2]any
		}
	}
	p.ask(t, "query", url.Values{"query": {q}}, &data)
	for _, r := range data.Result {
		samples = append(samples, sample{r.Metric, value(t, r.Value[1])})
	}
	return samples
}

// alerts are those that are pending or firing, by name, the worst of each.
func (p *prometheus) alerts(t *testing.T) map[string]string {
	t.Helper()
	var data struct {
		Alerts []struct {
			Labels map[string]string
			State  string
		}
	}
	p.ask(t, "alerts", nil, &data)
	states := map[string]string{}
	for _, a := range data.Alerts {
		if name := a.Labels["alertname"]; states[name] != "firing" {
			states[name] = a.State
		}
	}
	return states
}

// dashboard is what this test reads of Grafana's JSON.
type dashboard struct {
	UID, Title string
	Panels     []struct {
		Type, Title string
		GridPos     struct{ X, Y, W, H int }
		FieldConfig struct{ Defaults struct{ Unit string } }
		Targets     []struct{ Expr, LegendFormat string }
	}
}

func readDashboards(t *testing.T) (all []dashboard) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(chartDir, "dashboards", "*.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%d dashboards (%v)", len(files), err)
	}
	for _, file := range files {
		var d dashboard
		if err := json.Unmarshal([]byte(read(t, file)), &d); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		all = append(all, d)
	}
	return all
}
