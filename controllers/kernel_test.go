package controllers

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	corev1 "k8s.io/api/core/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/memqos/memqos/cgroup"
	"github.com/memqos/memqos/cgroup/cgrouptest"
	"github.com/memqos/memqos/config"
	"github.com/memqos/memqos/status"
)

// bundle is a config.json as containerd writes one, cut to what counts.
func bundle(id, kind, uid, pod, container string) string {
	return fmt.Sprintf(`{"ociVersion":"1.0.2","annotations":{"io.kubernetes.cri.container-type":%q,"io.kubernetes.cri.sandbox-uid":%q,
		"io.kubernetes.cri.sandbox-namespace":"default","io.kubernetes.cri.sandbox-name":%q,"io.kubernetes.cri.container-name":%q},
		"linux":{"cgroupsPath":"/kubepods/burstable/pod%s/%s"}}`, kind, uid, pod, container, uid, id)
}

func (w *world) addBundle(id, content string) {
	w.Helper()
	dir := filepath.Join(w.dir, "bundles", id)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		w.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(content), 0o600); err != nil {
		w.Fatal(err)
	}
}

// unreported is the pod of podTree of which the kubelet has reported nothing yet.
func unreported() *corev1.Pod {
	pod := burstable("p", "64Mi", "128Mi")
	pod.Status.ContainerStatuses, pod.Status.InitContainerStatuses = nil, nil
	return pod
}

// A container is known by its bundle before the pod's status names it; one of
// which the bundle lies is left alone.
func TestIdentityByBundle(t *testing.T) {
	const done, left = "67108864 127504384 134217728", "0 max 134217728"
	for _, tt := range []struct {
		name, bundle, want string
	}{
		{"the container", bundle(idApp, "container", "uid-1", "p", "app"), done},
		{"none", "", left},
		{"a sandbox", bundle(idApp, "sandbox", "uid-1", "p", ""), left},
		{"another pod's name", bundle(idApp, "container", "uid-1", "q", "app"), left},
		{"another uid", bundle(idApp, "container", "uid-2", "p", "app"), left},
		{"another id", bundle(idOther, "container", "uid-1", "p", "app"), left},
		{"a container that the pod has not", bundle(idApp, "container", "uid-1", "p", "other"), left},
		{"garbage", "{", left},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, podTree, unreported())
			if tt.bundle != "" {
				w.addBundle(idApp, tt.bundle)
			}
			w.mustReconcilePod("p")
			w.wants(podDir+"/"+idApp, tt.want)
			w.wants(podDir, "67108864 max max")
		})
	}
}

// What the pod's status says of a container goes before its bundle.
func TestStatusIsTheReferee(t *testing.T) {
	w := newWorld(t, podTree, burstable("p", "64Mi", "128Mi"))
	w.addBundle(idApp, bundle(idApp, "container", "uid-1", "p", "init"))
	w.mustReconcilePod("p")
	w.wants(podDir+"/"+idApp, "67108864 127504384 134217728")
}

// While a container's next run begins, its last one may still be there: both are
// the container's.
func TestRestartingContainer(t *testing.T) {
	w := newWorld(t, podTree+"\n"+podDir+"/"+idOther+" 0 0 max 134217728", burstable("p", "64Mi", "128Mi"))
	w.addBundle(idOther, bundle(idOther, "container", "uid-1", "p", "app"))
	w.mustReconcilePod("p")
	for _, id := range []string{idApp, idOther} {
		w.wants(podDir+"/"+id, "67108864 127504384 134217728")
	}
}

func TestInspectKnowsTheSandbox(t *testing.T) {
	w := newWorld(t, podTree, burstable("p", "64Mi", "128Mi"))
	w.addBundle(idSandbox, bundle(idSandbox, "sandbox", "uid-1", "p", ""))
	w.mustReconcilePod("p")
	var pods corev1.PodList
	if err := w.pods.List(t.Context(), &pods); err != nil {
		t.Fatal(err)
	}
	in, err := view{site: w.surveyor.site.Load()}.status("n", 0, pods.Items, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range in.Cgroups {
		if o.Cgroup == podDir+"/"+idSandbox {
			if o.Container != status.Sandbox || o.Verdict != status.Fulfilled {
				t.Errorf("the sandbox is %s, %s; want %s, %s", o.Container, o.Verdict, status.Sandbox, status.Fulfilled)
			}
			return
		}
	}
	t.Error("the sandbox is not shown")
}

func TestPodIndex(t *testing.T) {
	request := func(name string) ctrl.Request {
		return ctrl.Request{NamespacedName: client.ObjectKey{Namespace: "default", Name: name}}
	}
	x := newPodIndex()
	x.set(request("a"), "kubepods/poda")
	x.set(request("b"), "kubepods/podb")
	x.set(request("b"), "kubepods/burstable/podb") // its class was not known at first
	x.set(request("a2"), "kubepods/poda")          // the same static pod by another name
	x.set(request("a"), "")
	got := map[string]string{}
	for _, dir := range []string{"kubepods", "kubepods/poda/x/container", "kubepods/podb", "kubepods/burstable", "kubepods/burstable/podb/x", "", "/"} {
		if pod, ok := x.podOf(dir); ok {
			got[dir] = pod.Name
		}
	}
	want := map[string]string{"kubepods/poda/x/container": "a2", "kubepods/burstable/podb/x": "b"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// An overwrite is repaired, a new container and a new class get their values, when
// they come and not at the next full pass.
func TestReactsToTheKernel(t *testing.T) {
	pod := burstable("p", "64Mi", "128Mi")
	api := newAPIServer(t, pod)
	dir := cgrouptest.Make(t, podTree)
	health := runAgent(t, api.URL, true, func() (*cgroup.Tree, error) {
		return cgroup.OpenFixture(dir, cgroup.NewLayout(config.Cgroupfs, "/"))
	})
	answers(t, health+"/readyz", http.StatusOK)
	begun := time.Now()
	becomes := func(file, want string) {
		t.Helper()
		path := filepath.Join(dir, file)
		for got := ""; got != want; got = cgrouptest.Read(t, path) {
			if time.Since(begun) > 25*time.Second { // the next full pass comes after a minute
				t.Fatalf("%s is %s, want %s", file, got, want)
			}
			time.Sleep(time.Millisecond)
		}
	}
	for range 3 {
		cgrouptest.Write(t, filepath.Join(dir, podDir, idApp, "memory.high"), "max")
		becomes(podDir+"/"+idApp+"/memory.high", "127504384")
		cgrouptest.Write(t, filepath.Join(dir, "kubepods/burstable/memory.min"), "0")
		becomes("kubepods/burstable/memory.min", "67108864")
	}
	// The init container of the status, which comes late.
	cgrouptest.Add(t, dir, podDir+"/"+idInit+" 4096")
	becomes(podDir+"/"+idInit+"/memory.min", "0")
}

// That the queue of events was full leads to a full pass.
func TestLostEventsLeadToAPass(t *testing.T) {
	w := newWorld(t, podTree)
	k := &kernel{pass: newPass(w.surveyor.metrics), index: newPodIndex(), metrics: w.surveyor.metrics}
	k.happened(w.surveyor.site.Load().tree, cgroup.Event{Kind: cgroup.Lost})
	select {
	case <-k.pass.asked:
	default:
		t.Error("no full pass was asked for")
	}
	if err := testutil.GatherAndCompare(w.registry, strings.NewReader(`
# HELP memqos_event_overflows_total Times the kernel's queue of events was full and a full pass looked for what was lost.
# TYPE memqos_event_overflows_total counter
memqos_event_overflows_total 1
`), "memqos_event_overflows_total"); err != nil {
		t.Error(err)
	}
}
