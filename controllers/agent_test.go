package controllers

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/memqos/memqos/cgroup"
	"github.com/memqos/memqos/cgroup/cgrouptest"
	"github.com/memqos/memqos/config"
	"github.com/memqos/memqos/metrics"
)

// apiServer answers what the agent may ask and records what it does ask. It is
// old: it knows no streamed lists.
type apiServer struct {
	*httptest.Server
	mu       sync.Mutex
	requests []string
}

func newAPIServer(t *testing.T, pods ...*corev1.Pod) *apiServer {
	t.Helper()
	s := &apiServer{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		watch := q.Get("watch") == "true" || q.Get("watch") == "1"
		s.mu.Lock()
		s.requests = append(s.requests, r.Method+" "+r.URL.Path+" "+q.Get("fieldSelector"))
		s.mu.Unlock()
		w.Header().Set("Content-Type", "application/json")
		switch {
		case r.URL.Path != "/api/v1/pods":
			http.NotFound(w, r)
		case watch && q.Get("sendInitialEvents") != "":
			w.WriteHeader(http.StatusUnprocessableEntity)
			_, _ = w.Write([]byte(`{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Invalid","code":422}`))
		case watch:
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		default:
			list := corev1.PodList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"}, ListMeta: metav1.ListMeta{ResourceVersion: "1"}}
			for _, pod := range pods {
				list.Items = append(list.Items, *pod)
			}
			_ = json.NewEncoder(w).Encode(&list)
		}
	}))
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return s
}

func (s *apiServer) asked() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.requests...)
}

// runAgent runs an agent as its command does, and returns the base of its health
// server.
func runAgent(t *testing.T, api string, gate bool, discover func() (*cgroup.Tree, error)) (health string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	c, err := config.Load("", func(c *config.MemoryQoSConfiguration) {
		c.MetricsBindAddress, c.StatusBindAddress, c.HealthzBindAddress = "0", "0", address
		c.FeatureGates = map[string]bool{config.MemoryQoS: gate}
		c.StateDir = t.TempDir()
	})
	if err != nil {
		t.Fatal(err)
	}
	mgr, err := New(&rest.Config{Host: api}, Options{
		NodeName: "n", Config: c, Discover: discover, Metrics: metrics.New(prometheus.NewRegistry(), "", "", ""), Boot: "boot", Log: logr.Discard(),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- mgr.Start(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the agent ended with %v", err)
		}
	})
	return "http://" + address
}

// answers waits until a URL answers with the code.
func answers(t *testing.T, url string, want int) {
	t.Helper()
	got := 0
	for range 500 {
		resp, err := http.Get(url)
		if err == nil {
			got = resp.StatusCode
			if err := resp.Body.Close(); err != nil {
				t.Fatal(err)
			}
			if got == want {
				return
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("%s: %d, want %d", url, got, want)
}

// From nothing to ready: one list and one watch of this node's pods, no other
// request, and the values are there. Several times: what starts here starts in
// goroutines.
func TestAgent(t *testing.T) {
	for range 5 {
		api := newAPIServer(t, burstable("p", "64Mi", "128Mi"))
		dir := cgrouptest.Make(t, podTree)
		health := runAgent(t, api.URL, true, func() (*cgroup.Tree, error) {
			return cgroup.OpenFixture(dir, cgroup.NewLayout(config.Cgroupfs, "/"))
		})
		answers(t, health+"/readyz", http.StatusOK)
		answers(t, health+"/healthz", http.StatusOK)
		w := &world{TB: t, dir: dir}
		w.wants(podDir+"/"+idApp, "67108864 127504384 134217728")
		w.wants("kubepods", "67108864 max 8589934592")
		for _, request := range api.asked() {
			if request != "GET /api/v1/pods spec.nodeName=n" {
				t.Errorf("asked for %s", request)
			}
		}
	}
}

// On a node without kubepods the agent is ready and asks nothing; it begins when
// kubepods appears.
func TestAgentIdles(t *testing.T) {
	api := newAPIServer(t, burstable("p", "64Mi", "128Mi"))
	dir := cgrouptest.Make(t, podTree)
	var appeared atomic.Bool
	health := runAgent(t, api.URL, true, func() (*cgroup.Tree, error) {
		if !appeared.Load() {
			return nil, &cgroup.UnsupportedError{Reason: cgroup.ReasonNoKubepods, Message: "not yet"}
		}
		return cgroup.OpenFixture(dir, cgroup.NewLayout(config.Cgroupfs, "/"))
	})
	answers(t, health+"/readyz", http.StatusOK)
	if asked := api.asked(); len(asked) != 0 {
		t.Errorf("an idle agent asked for %s", strings.Join(asked, ", "))
	}
	appeared.Store(true)
	for range 500 {
		if len(api.asked()) > 0 {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	answers(t, health+"/readyz", http.StatusOK)
	(&world{TB: t, dir: dir}).wants(podDir+"/"+idApp, "67108864 127504384 134217728")
}

// With the gate off nothing is watched and nothing is looked at.
func TestAgentGateOff(t *testing.T) {
	api := newAPIServer(t)
	health := runAgent(t, api.URL, false, func() (*cgroup.Tree, error) {
		t.Error("looked for kubepods")
		return nil, &cgroup.UnsupportedError{}
	})
	answers(t, health+"/readyz", http.StatusOK)
	if asked := api.asked(); len(asked) != 0 {
		t.Errorf("asked for %s", strings.Join(asked, ", "))
	}
}

// With the API server away the agent is alive, not ready, and does not end.
func TestAgentWithoutAPIServer(t *testing.T) {
	dir := cgrouptest.Make(t, podTree)
	health := runAgent(t, "http://127.0.0.1:1", true, func() (*cgroup.Tree, error) {
		return cgroup.OpenFixture(dir, cgroup.NewLayout(config.Cgroupfs, "/"))
	})
	answers(t, health+"/readyz", http.StatusInternalServerError)
	answers(t, health+"/healthz", http.StatusOK)
	(&world{TB: t, dir: dir}).wants(podDir+"/"+idApp, "0 max 134217728")
}
