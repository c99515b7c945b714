package main

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/memqos/memqos/memory"
	"github.com/memqos/memqos/page"
	"github.com/memqos/memqos/qos"
	"github.com/memqos/memqos/status"
)

// inspect asks the agent, and says why where it reads without one: of another node, idle,
// not there, or not to be understood.
func TestInspectAsksTheAgent(t *testing.T) {
	tell := func(change func(*status.NodeStatus)) *status.NodeStatus {
		s := &status.NodeStatus{
			TypeMeta: metav1.TypeMeta{APIVersion: status.APIVersion, Kind: status.Kind}, Node: "here", Agent: &status.Agent{Version: "v1"},
			Cgroups: []status.Cgroup{{Level: qos.LevelPod, QOSClass: "Burstable", Namespace: "shop", Pod: "web", Verdict: status.Drifted,
				Wanted: memory.Values{memory.Min: 64 << 20}, Actual: memory.Values{memory.Min: 0, memory.Low: 0, memory.High: memory.Unlimited, memory.Max: memory.Unlimited}}},
		}
		change(s)
		return s
	}
	for _, tt := range []struct {
		name   string
		told   *status.NodeStatus // nil: no agent
		err    error              // of the agent
		stdout string
		note   string
	}{
		{"an agent", tell(func(*status.NodeStatus) {}), nil, "shop/web", ""},
		{"no agent", nil, nil, "", "note: read without the agent: no agent answers on this node"},
		{"another node's", tell(func(s *status.NodeStatus) { s.Node = "there" }), nil, "", `note: read without the agent: the agent in STATE is that of node "there"`},
		{"idle", tell(func(s *status.NodeStatus) { s.Agent.Idle, s.Agent.IdleMessage = "CgroupV1", "the host has cgroup v1" }), nil, "",
			"note: read without the agent: the agent is idle: CgroupV1: the host has cgroup v1"},
		{"busy", nil, errors.New("others are\x1b[2J being answered"), "", "note: read without the agent: the agent answers 503 Service Unavailable: others are?[2J being answered"},
		{"of a later version", tell(func(s *status.NodeStatus) { s.APIVersion = "memqos.io/v9" }), nil, "", `is a "NodeStatus" of "memqos.io/v9"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			state, err := os.MkdirTemp("", "memqos-") //nolint:usetesting // a socket's path has at most 108 bytes
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = os.RemoveAll(state) })
			if tt.told != nil || tt.err != nil {
				l, err := net.Listen("unix", filepath.Join(state, "status.sock"))
				if err != nil {
					t.Fatal(err)
				}
				server := &http.Server{Handler: page.Handler(func(context.Context, string, string) (*status.NodeStatus, error) { return tt.told, tt.err }, false)}
				go func() { _ = server.Serve(l) }()
				t.Cleanup(func() { _ = server.Close() })
			}
			file := filepath.Join(state, "config.yaml")
			if err := os.WriteFile(file, []byte("apiVersion: memqos.io/v1alpha1\nkind: MemoryQoSConfiguration\nstateDir: "+state+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			// What is read without an agent takes an API server, which is not there.
			stdout, stderr, err := run(t, "", "inspect", "--config", file, "--node-name", "here", "--kubeconfig", filepath.Join(state, "nowhere"), "--cgroup-root", state)
			if tt.note == "" {
				if err != nil || stderr != "" || !strings.Contains(stdout, tt.stdout) || !strings.Contains(stdout, "Drifted") {
					t.Errorf("%v, stderr %q:\n%s", err, stderr, stdout)
				}
				return
			}
			if want := strings.ReplaceAll(tt.note, "STATE", state); !strings.Contains(stderr, want) {
				t.Errorf("stderr %q, want %q", stderr, want)
			}
			if err == nil || !strings.Contains(err.Error(), "nowhere") || stdout != "" {
				t.Errorf("it goes on to %v, stdout %q; want it to ask the API server of the file nowhere", err, stdout)
			}
		})
	}
}
