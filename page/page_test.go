package page

import (
	"context"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"github.com/memqos/memqos/memory"
	"github.com/memqos/memqos/qos"
	"github.com/memqos/memqos/status"
)

const hostile = `"><script>alert(1)</script><img src=x onerror=alert(1)>`

func get(t *testing.T, method, url, host string, loopback bool) *httptest.ResponseRecorder {
	t.Helper()
	s := &status.NodeStatus{Node: hostile, Cgroups: []status.Cgroup{{
		Level: qos.LevelPod, Cgroup: hostile, Namespace: hostile, Pod: hostile, Verdict: status.Fulfilled,
		Actual: memory.Values{memory.High: 4096}, Reason: map[memory.File]string{memory.High: hostile},
	}}}
	r := httptest.NewRequest(method, url, nil)
	r.Host = host
	w := httptest.NewRecorder()
	Handler(func(context.Context, string, string) (*status.NodeStatus, error) { return s, nil }, loopback).ServeHTTP(w, r)
	return w
}

// What comes of a pod is text, and the policy names the page's own script and style
// as they are sent.
func TestHostileNames(t *testing.T) {
	w := get(t, "GET", "/", "localhost:9812", true)
	body := w.Body.String()
	if n := strings.Count(body, "<script"); n != 1 || strings.Contains(body, "<img") {
		t.Errorf("%d scripts in\n%s", n, body)
	}
	if !strings.Contains(body, "4Ki") {
		t.Error("the value is not shown")
	}
	for _, element := range []string{"style", "script"} {
		sent := regexp.MustCompile(`(?s)<` + element + `>(.*?)</` + element + `>`).FindStringSubmatch(body)[1]
		kept := regexp.MustCompile(`(?s)<` + element + `>(.*?)</` + element + `>`).FindStringSubmatch(source)[1]
		if sent != kept || !strings.Contains(w.Header().Get("Content-Security-Policy"), hashOf(element)) {
			t.Errorf("the %s that is sent is not that of the policy", element)
		}
	}
}

func TestHandler(t *testing.T) {
	for _, tc := range []struct {
		method, url, host string
		loopback          bool
		want              int
	}{
		{"GET", "/", "localhost", true, 200},
		{"GET", "/status", "127.0.0.1:9812", true, 200},
		{"GET", "/status", "[::1]:9812", true, 200},
		{"HEAD", "/status", "localhost", true, 200},
		{"GET", "/", "evil.example:9812", true, 421},
		{"GET", "/", "api.example", false, 200}, // the API server's proxy hands on its own
		{"POST", "/status", "localhost", true, 405},
		{"GET", "/metrics", "localhost", true, 404},
	} {
		if got := get(t, tc.method, tc.url, tc.host, tc.loopback).Code; got != tc.want {
			t.Errorf("%s %s to %s: %d, want %d", tc.method, tc.url, tc.host, got, tc.want)
		}
	}
}
