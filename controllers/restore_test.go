package controllers

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/memqos/memqos/cgroup/cgrouptest"
)

// snapshot reads every memory.* file that can be written.
func (w *world) snapshot() map[string]string {
	w.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(w.dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && strings.HasPrefix(d.Name(), "memory.") {
			out[strings.TrimPrefix(path, w.dir+"/")] = cgrouptest.Read(w, path)
		}
		return err
	})
	if err != nil {
		w.Fatal(err)
	}
	return out
}

func (w *world) restore() Restoration {
	w.Helper()
	r, err := Restore(w.surveyor.site.Load().tree, w.pod.writer.ledger)
	if err != nil {
		w.Fatal(err)
	}
	return r
}

func TestRestore(t *testing.T) {
	w := newWorld(t, podTree+"\n"+podDir+"/"+idInit, burstable("p", "64Mi", "128Mi"))
	before := w.snapshot()
	w.mustReconcilePod("p")
	w.reconcileNode()
	if cmp.Equal(before, w.snapshot()) {
		t.Fatal("nothing was written: there is nothing to restore")
	}
	if r := w.restore(); r.Restored != 5 || len(r.Left) != 0 {
		t.Errorf("got %+v, want 5 restored", r)
	}
	if diff := cmp.Diff(before, w.snapshot()); diff != "" {
		t.Errorf("not as it was (-before +after):\n%s", diff)
	}
	if r := w.restore(); r.Restored+r.Unchanged != 0 {
		t.Errorf("a second restore found %+v", r)
	}
}

// What somebody else wrote since stays, and what they wrote and memqos repaired
// comes back. A cgroup that was made anew under an old name is left alone.
func TestRestoreLeavesOthersValues(t *testing.T) {
	w := newWorld(t, podTree, burstable("p", "64Mi", "128Mi"))
	app := filepath.Join(w.dir, podDir, idApp)
	w.mustReconcilePod("p")
	cgrouptest.Write(t, filepath.Join(app, "memory.high"), "4096")
	w.mustReconcilePod("p")
	cgrouptest.Write(t, filepath.Join(app, "memory.min"), "8192")
	if r := w.restore(); r.Restored != 2 || r.Unchanged != 1 {
		t.Errorf("got %+v, want 2 restored (the pod's memory.min, the container's memory.high) and 1 unchanged", r)
	}
	w.wants(podDir+"/"+idApp, "8192 4096 134217728")
	w.wants(podDir, "0 max max")
}

// A memory.max that would kill is left, and put back by a later restore.
func TestRestoreDoesNotKill(t *testing.T) {
	w := newWorld(t, strings.ReplaceAll(podTree, idApp+" 0 0 max 134217728", idApp+" 0 0 max 104857600 50000000"), burstable("p", "64Mi", "128Mi"))
	w.mustReconcilePod("p")
	usage := filepath.Join(w.dir, podDir, idApp, "memory.current")
	cgrouptest.Write(t, usage, "120000000")
	r := w.restore()
	var left *LeftError
	if len(r.Left) != 1 || !errors.As(r.Left[0], &left) {
		t.Fatalf("left %v, want one limit", r.Left)
	}
	w.wants(podDir+"/"+idApp, "0 max 134217728")
	cgrouptest.Write(t, usage, "50000000")
	if r := w.restore(); r.Restored != 1 || len(r.Left) != 0 {
		t.Errorf("later: %+v, want 1 restored", r)
	}
	w.wants(podDir+"/"+idApp, "0 max 104857600")
}

func TestUninstalled(t *testing.T) {
	const path = "/apis/apps/v1/namespaces/memqos/daemonsets/memqos"
	object := `{"apiVersion":"apps/v1","kind":"DaemonSet","metadata":{"name":"memqos","namespace":"memqos"%s}}`
	for _, tt := range []struct {
		name   string
		status int
		body   string
		want   bool
		fails  bool
	}{
		{"a rolling update or a drain", 200, strings.ReplaceAll(object, "%s", ""), false, false},
		{"going", 200, strings.ReplaceAll(object, "%s", `,"deletionTimestamp":"2026-01-01T00:00:00Z"`), true, false},
		{"gone", 404, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":404}`, true, false},
		{"the rights are gone", 403, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Forbidden","code":403}`, true, false},
		{"the service account is gone", 401, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Unauthorized","code":401}`, true, false},
		{"the API server is not well", 500, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"InternalError","code":500}`, false, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != path {
					t.Errorf("asked for %s", r.URL.Path)
				}
				w.Header().Set("Content-Type", "application/json")
				w.WriteHeader(tt.status)
				_, _ = w.Write([]byte(tt.body))
			}))
			defer s.Close()
			got, err := Uninstalled(context.Background(), &rest.Config{Host: s.URL}, client.ObjectKey{Namespace: "memqos", Name: "memqos"})
			if got != tt.want || (err != nil) != tt.fails {
				t.Errorf("got %t, %v; want %t, an error %t", got, err, tt.want, tt.fails)
			}
		})
	}
}
