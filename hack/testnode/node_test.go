//go:build e2e

package testnode

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

const testPods = `
apiVersion: v1
kind: Pod
metadata: {name: burstable}
spec:
  containers:
  - name: main
    image: docker.io/memqos/workload:test
    imagePullPolicy: Never
    args: [limits]
    resources: {requests: {memory: 64Mi}, limits: {memory: 128Mi}}
---
apiVersion: v1
kind: Pod
metadata: {name: with-init, namespace: kube-system}
spec:
  hostNetwork: true
  initContainers:
  - name: first
    image: docker.io/memqos/busybox:test
    imagePullPolicy: Never
    command: [sh, -c, "sleep 1"]
    resources: {requests: {memory: 16Mi}, limits: {memory: 200Mi}}
  containers:
  - name: main
    image: docker.io/memqos/workload:test
    imagePullPolicy: Never
    resources: {requests: {memory: 32Mi}}
`

const testStaticPod = `
apiVersion: v1
kind: Pod
metadata: {name: static}
spec:
  containers:
  - name: main
    image: docker.io/memqos/workload:test
    imagePullPolicy: Never
    resources: {requests: {memory: 20Mi}, limits: {memory: 20Mi, cpu: 100m}}
`

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func startNode(t *testing.T, o Options) *Node {
	t.Helper()
	o.Log = t.Output()
	n, err := Start(testContext(t), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			dir, err := n.CollectLogs(context.Background())
			t.Logf("logs of the node: %s (%v)", dir, err)
		}
		if err := n.Stop(); err != nil {
			t.Error(err)
		}
		if exists(n.Dir()) != (os.Getenv("MEMQOS_KEEP") != "") {
			t.Errorf("after Stop, %s exists: %t", n.Dir(), exists(n.Dir()))
		}
		for _, p := range []*process{n.vm, n.plane.etcd, n.plane.apiServer} {
			if p.exited() == nil {
				t.Errorf("after Stop, %s still runs", p.name)
			}
		}
	})
	return n
}

func TestNode(t *testing.T) {
	ctx := testContext(t)
	n := startNode(t, Options{
		FeatureGates: map[string]bool{"MemoryQoS": true},
		StaticPods:   map[string][]byte{"static.yaml": []byte(testStaticPod)},
		Audit:        true,
	})
	if err := n.Apply(ctx, []byte(testPods)); err != nil {
		t.Fatal(err)
	}
	if err := n.WaitRunning(ctx, []byte(testPods)); err != nil {
		t.Fatal(err)
	}
	if err := n.WaitPod(ctx, "default", "static-"+n.Name()); err != nil {
		t.Fatal(err)
	}
	clients, err := kubernetes.NewForConfig(n.RESTConfig())
	if err != nil {
		t.Fatal(err)
	}

	t.Run("cgroups", func(t *testing.T) {
		pod, err := clients.CoreV1().Pods("default").Get(ctx, "burstable", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		slice := "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + strings.ReplaceAll(string(pod.UID), "-", "_") + ".slice"
		scope := slice + "/cri-" + strings.Replace(pod.Status.ContainerStatuses[0].ContainerID, "://", "-", 1) + ".scope"
		cgroups, err := n.Cgroups(ctx)
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]string{"memory.min": "67108864", "memory.low": "0", "memory.high": "127504384", "memory.max": "134217728"}
		if diff := cmp.Diff(want, cgroups[scope]); diff != "" {
			t.Errorf("%s (-want +got):\n%s\nall: %q", scope, diff, slices.Sorted(maps.Keys(cgroups)))
		}
		sum := cgroups["kubepods.slice/kubepods-burstable.slice"]["memory.min"]
		if want := "100663296"; sum != want { // 64Mi + 32Mi; the init container's 16Mi is less than 32Mi
			t.Errorf("memory.min of the Burstable slice is %s, want %s", sum, want)
		}
	})

	t.Run("run", func(t *testing.T) {
		stdout, err := n.Run(ctx, "sh", "-c", "echo out; echo err >&2; exit 3")
		var failed *RunError
		if !errors.As(err, &failed) || failed.ExitCode != 3 || failed.Stderr != "err\n" || stdout != "out\n" {
			t.Errorf("stdout %q, error %v; want out, and exit code 3 with err", stdout, err)
		}
		if _, err := n.Run(ctx, "no-such-command"); err == nil || errors.As(err, &failed) {
			t.Errorf("a command that does not exist: %v", err)
		}
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if _, err := n.Run(short, "sleep", "4242"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a command that takes too long: %v", err)
		}
		time.Sleep(time.Second)
		if stdout, err := n.Run(ctx, "pgrep", "-f", "^sleep 4242"); err == nil {
			t.Errorf("an abandoned command still runs: %s", stdout)
		}
	})

	t.Run("files", func(t *testing.T) {
		if err := n.WriteFile(ctx, "/tmp/some/file", []byte("content"), 0o640); err != nil {
			t.Fatal(err)
		}
		data, err := n.ReadFile(ctx, "/tmp/some/file")
		if err != nil || string(data) != "content" {
			t.Errorf("read back %q, %v", data, err)
		}
		if _, err := n.ReadFile(ctx, "/tmp/none"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("read a file that is not there: %v", err)
		}
		script := filepath.Join(t.TempDir(), "script")
		if err := os.WriteFile(script, []byte("#!/bin/sh\necho ran $1\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := n.CopyIn(ctx, script, "/usr/local/bin/script"); err != nil {
			t.Fatal(err)
		}
		if stdout, err := n.Run(ctx, "script", "well"); err != nil || stdout != "ran well\n" {
			t.Errorf("copied script: %q, %v", stdout, err)
		}
	})

	t.Run("ports", func(t *testing.T) {
		address, err := n.Forward("127.0.0.1:10248") // the kubelet's healthz
		if err != nil {
			t.Fatal(err)
		}
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close() //nolint:errcheck // nothing is buffered
		if _, err := io.WriteString(conn, "GET /healthz HTTP/1.0\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if answer, err := io.ReadAll(conn); err != nil || !strings.Contains(string(answer), "200 OK") {
			t.Errorf("kubelet's healthz: %q, %v", answer, err)
		}
	})

	t.Run("logs through the API server", func(t *testing.T) {
		log, err := clients.CoreV1().Pods("default").GetLogs("burstable", &corev1.PodLogOptions{}).DoRaw(ctx)
		if err != nil {
			t.Fatal(err)
		}
		// What the first instruction saw.
		want := "memory.min 67108864\nmemory.low 0\nmemory.high 127504384\nmemory.max 134217728\n"
		if diff := cmp.Diff(want, string(log)); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})

	t.Run("kubeconfig", func(t *testing.T) {
		path, err := n.Kubeconfig("someone", "system:authenticated")
		if err != nil {
			t.Fatal(err)
		}
		config, err := clientcmd.BuildConfigFromFlags("", path)
		if err != nil {
			t.Fatal(err)
		}
		someone, err := kubernetes.NewForConfig(config)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := someone.CoreV1().Nodes().List(ctx, metav1.ListOptions{}); err == nil || !strings.Contains(err.Error(), `User "someone" cannot list`) {
			t.Errorf("list nodes as someone: %v", err)
		}
	})

	t.Run("API outage", func(t *testing.T) {
		if err := n.SetAPIServer(ctx, false); err != nil {
			t.Fatal(err)
		}
		if _, err := clients.Discovery().ServerVersion(); err == nil {
			t.Error("the API server answers, though stopped")
		}
		if _, err := n.Cgroups(ctx); err != nil {
			t.Errorf("the node is unreachable without the API server: %v", err)
		}
		if err := n.SetAPIServer(ctx, true); err != nil {
			t.Fatal(err)
		}
		if _, err := clients.CoreV1().Nodes().Get(ctx, n.Name(), metav1.GetOptions{}); err != nil {
			t.Error(err)
		}
	})

	t.Run("delete", func(t *testing.T) {
		if err := n.Delete(ctx, []byte(testPods)); err != nil {
			t.Fatal(err)
		}
	})
}

// Two nodes side by side, each with a layout of its own.
func TestLayouts(t *testing.T) {
	type layout struct {
		name    string
		options Options
		want    string
	}
	layouts := []layout{
		{
			name:    "cgroupfs",
			options: Options{CgroupDriver: "cgroupfs"},
			want:    "kubepods/burstable",
		},
		{
			name:    "systemd in kind's cgroup root, crun",
			options: Options{CgroupRoot: "/kubelet", Runtime: "crun"},
			want:    "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice",
		},
		{
			name:    "cgroupfs in kind's cgroup root",
			options: Options{CgroupDriver: "cgroupfs", CgroupRoot: "/kubelet"},
			want:    "kubelet/kubepods/burstable",
		},
	}
	if os.Getenv("MEMQOS_E2E_MATRIX") != "" { // CRI-O takes minutes to build
		layouts = append(layouts, layout{
			name:    "CRI-O, cgroupfs, crun",
			options: Options{CRI: "cri-o", CgroupDriver: "cgroupfs", Runtime: "crun"},
			want:    "kubepods/burstable",
		})
	}
	for _, test := range layouts {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			ctx := testContext(t)
			n := startNode(t, test.options)
			if err := n.Apply(ctx, []byte(testPods)); err != nil {
				t.Fatal(err)
			}
			if err := n.WaitRunning(ctx, []byte(testPods)); err != nil {
				t.Fatal(err)
			}
			cgroups, err := n.Cgroups(ctx)
			if err != nil {
				t.Fatal(err)
			}
			var limited int
			for path, values := range cgroups {
				if strings.HasPrefix(path, test.want+"/") && values["memory.max"] == "134217728" {
					limited++
				}
			}
			if limited != 2 { // the pod and its container
				t.Errorf("%d cgroups beneath %s with the limit, want 2; all: %v", limited, test.want, cgroups)
			}
		})
	}
}
