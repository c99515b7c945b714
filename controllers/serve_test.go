package controllers

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/memqos/memqos/config"
	"github.com/memqos/memqos/status"
)

// socketDir is a directory whose path is short enough for a socket's.
func socketDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "memqos-") //nolint:usetesting // a socket's path has at most 108 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// An agent that is idle answers on its socket, which it alone may enter, also where one
// that was killed has left another there.
func TestServeSocket(t *testing.T) {
	dir := socketDir(t)
	socket := filepath.Join(dir, StatusSocket)
	left, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	left.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := left.Close(); err != nil {
		t.Fatal(err)
	}
	c, err := config.Load("")
	if err != nil {
		t.Fatal(err)
	}
	c.StateDir = dir
	a := &agent{options: Options{NodeName: "n", Config: c, Version: "v1", Log: logr.Discard()}, surveyor: &surveyor{log: logr.Discard()}, pass: newPass(nil), asking: make(chan struct{}, askers), started: time.Unix(1, 0)}
	a.surveyor.config.Store(c)
	a.surveyor.idle.Store(&idleness{"CgroupV1", "the host has cgroup v1"})
	a.refused.Store(new("mode: Unsupported value"))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { a.serveSocket(ctx); close(done) }()

	var s *status.NodeStatus
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if s, err = Ask(t.Context(), dir); err == nil || time.Now().After(deadline) {
			break
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(socket); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket is %v (%v), want 0600", info.Mode(), err)
	}
	if s.APIVersion != status.APIVersion || s.Kind != status.Kind || s.Node != "n" || s.Agent == nil || s.Agent.Version != "v1" || s.Agent.Idle != "CgroupV1" ||
		s.Agent.IdleMessage != "the host has cgroup v1" || s.Agent.Refused != "mode: Unsupported value" || s.Agent.LastPass != nil || len(s.Cgroups) != 0 {
		t.Errorf("the agent tells %+v, %+v", s, s.Agent)
	}
	cancel()
	<-done
	if _, err := Ask(t.Context(), dir); !errors.Is(err, ErrNoAgent) {
		t.Errorf("an agent that has ended: %v, want ErrNoAgent", err)
	}
}

// Whoever asks is told what is wrong with the answer, and that there is none.
func TestAsk(t *testing.T) {
	good := &status.NodeStatus{TypeMeta: metav1.TypeMeta{APIVersion: status.APIVersion, Kind: status.Kind}, Node: "n"}
	for _, tt := range []struct {
		name string
		code int
		body string
		want string // of the error; "" for none
	}{
		{"an answer", 200, `{"apiVersion":"memqos.io/v1alpha1","kind":"NodeStatus","node":"n"}`, ""},
		{"fields of a later agent", 200, `{"apiVersion":"memqos.io/v1alpha1","kind":"NodeStatus","node":"n","later":{"x":1}}`, ""},
		{"another version", 200, `{"apiVersion":"memqos.io/v2","kind":"NodeStatus"}`, `is a "NodeStatus" of "memqos.io/v2", want a NodeStatus of memqos.io/v1alpha1`},
		{"another kind", 200, `{"apiVersion":"memqos.io/v1alpha1","kind":"Plan\u001b[2J"}`, `is a "Plan?[2J"`},
		{"no JSON", 200, "<html>", "read the agent's answer"},
		{"refused", 503, "others are being answered", "503 Service Unavailable: others are being answered"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := socketDir(t)
			l, err := net.Listen("unix", filepath.Join(dir, StatusSocket))
			if err != nil {
				t.Fatal(err)
			}
			server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/status" {
					t.Errorf("asked for %s", r.URL.Path)
				}
				w.WriteHeader(tt.code)
				_, _ = w.Write([]byte(tt.body))
			})}
			go func() { _ = server.Serve(l) }()
			t.Cleanup(func() { _ = server.Close() })
			got, err := Ask(t.Context(), dir)
			switch {
			case tt.want == "" && err != nil:
				t.Error(err)
			case tt.want == "":
				if diff := cmp.Diff(good, got); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
			case err == nil || !strings.Contains(err.Error(), tt.want) || errors.Is(err, ErrNoAgent):
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
	if _, err := Ask(t.Context(), filepath.Join(t.TempDir(), "nowhere")); !errors.Is(err, ErrNoAgent) {
		t.Errorf("no agent: %v", err)
	}
}

// While others are answered one waits, as long as he likes.
func TestAskersWait(t *testing.T) {
	a := &agent{asking: make(chan struct{}, askers)}
	for range askers {
		a.asking <- struct{}{}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := a.ask(ctx, "", ""); !errors.Is(err, errBusy) {
		t.Errorf("%v, want %v", err, errBusy)
	}
	if len(a.asking) != askers {
		t.Errorf("%d are being answered, want %d", len(a.asking), askers)
	}
}

func TestIsLoopback(t *testing.T) {
	for address, want := range map[string]bool{"127.0.0.1:1": true, "127.9.9.9:1": true, "[::1]:1": true, "0.0.0.0:1": false, "[::]:1": false, "10.0.0.1:1": false} {
		addr, err := net.ResolveTCPAddr("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		if got := isLoopback(addr); got != want {
			t.Errorf("%s: %v", address, got)
		}
	}
	if isLoopback(&net.UnixAddr{Name: "/x", Net: "unix"}) {
		t.Error("a socket has no Host to be checked")
	}
}
