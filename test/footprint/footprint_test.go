//go:build e2e

package footprint

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/memqos/memqos/hack/testnode"
)

const (
	nodeName = "footprint"
	// clockTick is the unit of the times in /proc/PID/stat on every architecture
	// that Kubernetes runs on (USER_HZ).
	clockTick = 10 * time.Millisecond
)

// TestFootprint measures the agent, and beside it the floor, while nothing happens,
// for MEMQOS_IDLE (5m). What is asserted is memory: the goals of docs/performance.md.
func TestFootprint(t *testing.T) {
	idle := 5 * time.Minute
	if s := os.Getenv("MEMQOS_IDLE"); s != "" {
		var err error
		if idle, err = time.ParseDuration(s); err != nil {
			t.Fatal(err)
		}
	}
	agent, floor := build(t, "agent"), build(t, "floor")
	for _, size := range []struct {
		pods      int
		anonymous int64 // the most, in KiB
	}{{110, 12 << 10}, {500, 20 << 10}} {
		t.Run(fmt.Sprintf("%d pods", size.pods), func(t *testing.T) {
			plane, err := testnode.StartControlPlane(t.Context(), "1.27.4", t.Output())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := plane.Stop(); err != nil {
					t.Error(err)
				}
			})
			// In memory: a directory per cgroup on a disk takes minutes.
			dir, err := os.MkdirTemp("/dev/shm", "memqos-footprint-") //nolint:usetesting // it is to be in memory
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = os.RemoveAll(dir) })
			makePods(t, plane, dir, 0, size.pods)

			const metricsAddress, profileAddress = "127.0.0.1:19810", "127.0.0.1:19812"
			configuration := write(t, dir, "config.yaml", `
apiVersion: memqos.io/v1alpha1
kind: MemoryQoSConfiguration
metricsBindAddress: `+metricsAddress+`
healthzBindAddress: 127.0.0.1:19811
statusBindAddress: 127.0.0.1:19812
stateDir: `+dir+`/state
bundlePaths: ["`+dir+`/bundles/<id>/config.json"]
`)
			a := run(t, agent, "agent", kubeconfig(t, plane, dir, "agent", "system:masters"), nodeName, configuration, dir+"/cgroup")
			f := run(t, floor, "floor", kubeconfig(t, plane, dir, "floor", "system:masters"), nodeName)
			eventually(t, func() error { return ready("http://127.0.0.1:19811/readyz") })
			time.Sleep(35 * time.Second) // a full pass later

			requests := countRequests(t, plane, "agent")
			cpu, began := a.cpu(t), time.Now()
			floorCPU := f.cpu(t)
			time.Sleep(idle)
			share := func(d time.Duration) string {
				return fmt.Sprintf("%v in %v, %.3f %% of a core", d, idle, 100*float64(d)/float64(time.Since(began)))
			}
			used, floorUsed := a.cpu(t)-cpu, f.cpu(t)-floorCPU
			rss, anonymous := a.memory(t)
			floorRSS, floorAnonymous := f.memory(t)
			t.Logf("agent: RSS %.1f MiB, anonymous %.1f MiB; idle %s", mib(rss), mib(anonymous), share(used))
			t.Logf("floor: RSS %.1f MiB, anonymous %.1f MiB; idle %s", mib(floorRSS), mib(floorAnonymous), share(floorUsed))
			t.Logf("agent / floor: RSS %.2f", float64(rss)/float64(floorRSS))
			for _, m := range []string{"memqos_watched_cgroups", "memqos_unwatched_cgroups", "memqos_last_full_pass_duration_seconds", "memqos_cgroups{", "memqos_writes_total{"} {
				t.Logf("%s", lines(t, "http://"+metricsAddress+"/metrics", m))
			}
			during := map[string]int{}
			for request, n := range countRequests(t, plane, "agent") {
				if n -= requests[request]; n > 0 {
					during[request] = n
				}
			}
			t.Logf("requests from the start: %v", requests)
			t.Logf("requests while idle: %v", during)
			for request := range during {
				// A watch is renewed every few minutes.
				if !strings.HasPrefix(request, "watch ") {
					t.Errorf("the idle agent asked for %s", request)
				}
			}
			if anonymous > size.anonymous {
				t.Errorf("anonymous memory is %.1f MiB, want at most %.0f", mib(anonymous), mib(size.anonymous))
			}
			if limit := floorRSS * 5 / 4; rss > limit && size.pods == 110 {
				t.Errorf("RSS is %.1f MiB, want at most 1.25 times the floor, %.1f", mib(rss), mib(limit))
			}
			if out := os.Getenv("MEMQOS_PROFILES"); out != "" {
				save(t, "http://"+profileAddress+"/debug/pprof/heap", filepath.Join(out, fmt.Sprintf("heap-%d.pprof", size.pods)))
			}
			repairs(t, a, dir)
		})
	}
}

// repairs counts the system calls of a repair.
func repairs(t *testing.T, a *process, dir string) {
	t.Helper()
	if _, err := exec.LookPath("strace"); err != nil {
		t.Log("no strace: the system calls of a repair are not counted")
		return
	}
	out := filepath.Join(dir, "strace")
	tracer := exec.Command("strace", "-f", "-c", "-U", "name,calls,errors", "-o", out, "-p", strconv.Itoa(a.Process.Pid))
	if err := tracer.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * time.Second)
	const n = 100
	for i := range n { // each file once: more would be a fight
		file := filepath.Join(dir, "cgroup", podDir(i), containerID(i, 1), "memory.high")
		want := read(t, file)
		write(t, filepath.Dir(file), "memory.high", "max\n")
		eventually(t, func() error {
			if got := read(t, file); strings.TrimSpace(got) != strings.TrimSpace(want) {
				return fmt.Errorf("%s is %q, want %q", file, got, want)
			}
			return nil
		})
	}
	if err := tracer.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	_ = tracer.Wait() // interrupted
	t.Logf("system calls of %d repairs, each of one file of a pod of two containers:\n%s", n, read(t, out))
}

func mib(kib int64) float64 { return float64(kib) / 1024 }

func build(t *testing.T, name string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), name)
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", out, "./"+name)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", name, err, text)
	}
	return out
}

func podUID(i int) string { return fmt.Sprintf("00000000-0000-4000-8000-%012d", i) }

func podDir(i int) string { return "kubepods/burstable/pod" + podUID(i) }

// containerID is that of the sandbox (0) or of a container of a pod.
func containerID(pod, container int) string { return fmt.Sprintf("%064x", 1<<32+pod<<8+container) }

// makeCgroup makes the files of a cgroup.
func makeCgroup(t *testing.T, dir, path, limit string) {
	t.Helper()
	d := filepath.Join(dir, "cgroup", path)
	for file, value := range map[string]string{
		"memory.min": "0", "memory.low": "0", "memory.high": "max", "memory.max": limit, "memory.current": "4096",
		"memory.events": noEvents, "memory.events.local": noEvents, "memory.pressure": noPressure,
		"memory.stat": "anon 4096\nfile 0", "cgroup.events": "populated 1\nfrozen 0", "cpu.stat": "usage_usec 0",
	} {
		write(t, d, file, value+"\n")
	}
}

const (
	noEvents   = "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\noom_group_kill 0"
	noPressure = "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0"
)

// makePods makes the pods from the number first up to n, of two containers, as a
// Deployment's are, their cgroups with that of the sandbox, and their bundles; and
// with the first pod the node.
func makePods(t *testing.T, plane *testnode.ControlPlane, dir string, first, n int) {
	t.Helper()
	cgroup := func(path, limit string) { t.Helper(); makeCgroup(t, dir, path, limit) }
	if first == 0 {
		cgroup("kubepods", strconv.Itoa(256<<30))
		cgroup("kubepods/burstable", "max")
		cgroup("kubepods/besteffort", "max")
	}
	config := plane.RESTConfig()
	config.QPS, config.Burst = 1000, 1000
	clients, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	var group errgroup.Group
	group.SetLimit(10)
	uids := make([]string, n)
	for i := first; i < n; i++ {
		group.Go(func() error {
			pod, err := clients.CoreV1().Pods("default").Create(t.Context(), newPod(i), metav1.CreateOptions{})
			if err != nil {
				return err
			}
			uids[i] = string(pod.UID)
			now := metav1.Now()
			pod.Status = corev1.PodStatus{Phase: corev1.PodRunning, QOSClass: corev1.PodQOSBurstable, StartTime: &now, PodIP: "10.0.0.1"}
			for j, c := range pod.Spec.Containers {
				pod.Status.ContainerStatuses = append(pod.Status.ContainerStatuses, corev1.ContainerStatus{
					Name: c.Name, ContainerID: "containerd://" + containerID(i, j+1), Image: c.Image, ImageID: "sha256:" + containerID(i, 9), Ready: true,
					State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: now}},
				})
			}
			_, err = clients.CoreV1().Pods("default").UpdateStatus(t.Context(), pod, metav1.UpdateOptions{})
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	for i := first; i < n; i++ {
		uid := uids[i]
		real := "kubepods/burstable/pod" + uid
		cgroup(real, "268435456")
		// The rest of the test finds it by its number.
		if err := os.Symlink("pod"+uid, filepath.Join(dir, "cgroup", podDir(i))); err != nil {
			t.Fatal(err)
		}
		for j := range 3 {
			limit := "134217728"
			kind, container := "container", fmt.Sprintf("c-%d", j)
			if j == 0 {
				limit, kind, container = "max", "sandbox", ""
			}
			cgroup(real+"/"+containerID(i, j), limit)
			bundle, err := json.Marshal(map[string]any{
				"annotations": map[string]string{
					"io.kubernetes.cri.container-type": kind, "io.kubernetes.cri.container-name": container, "io.kubernetes.cri.sandbox-id": containerID(i, 0),
					"io.kubernetes.cri.sandbox-uid": uid, "io.kubernetes.cri.sandbox-namespace": "default", "io.kubernetes.cri.sandbox-name": fmt.Sprintf("web-%d", i),
				},
				"linux": map[string]any{"cgroupsPath": "/" + real + "/" + containerID(i, j)},
			})
			if err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(dir, "bundles", containerID(i, j)), "config.json", string(bundle))
		}
	}
}

func newPod(i int) *corev1.Pod {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name:        fmt.Sprintf("web-%d", i),
			Labels:      map[string]string{"app": "web", "pod-template-hash": "5d4f8c7b9", "app.kubernetes.io/part-of": "shop"},
			Annotations: map[string]string{"prometheus.io/scrape": "true", "checksum/config": containerID(i, 8)},
		},
		Spec: corev1.PodSpec{NodeName: nodeName},
	}
	for j := 1; j < 3; j++ {
		c := corev1.Container{
			Name: fmt.Sprintf("c-%d", j), Image: "registry.example.org/shop/web:v1.2.3", Args: []string{"serve", "--listen=:8080"},
			Resources: corev1.ResourceRequirements{
				Requests: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("64Mi"), corev1.ResourceCPU: resource.MustParse("100m")},
				Limits:   corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("128Mi")},
			},
		}
		for k := range 20 {
			c.Env = append(c.Env, corev1.EnvVar{Name: fmt.Sprintf("SETTING_%d", k), Value: containerID(i, k)})
		}
		pod.Spec.Containers = append(pod.Spec.Containers, c)
	}
	return pod
}

func kubeconfig(t *testing.T, plane *testnode.ControlPlane, dir, user string, groups ...string) string {
	t.Helper()
	data, err := plane.Kubeconfig(user, groups...)
	if err != nil {
		t.Fatal(err)
	}
	return write(t, dir, "kubeconfig-"+user, string(data))
}

// countRequests counts what a user has asked the API server for, by verb and
// resource.
func countRequests(t *testing.T, plane *testnode.ControlPlane, user string) map[string]int {
	t.Helper()
	f, err := os.Open(plane.AuditLog())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // read only
	count := map[string]int{}
	scanner := bufio.NewScanner(f)
	scanner.Buffer(nil, 1<<20)
	for scanner.Scan() {
		var event struct {
			Verb, RequestURI string
			Stage            string
			User             struct{ Username string }
		}
		if err := json.Unmarshal(scanner.Bytes(), &event); err != nil {
			t.Fatal(err)
		}
		if event.User.Username == user && event.Stage != "ResponseStarted" {
			path, _, _ := strings.Cut(event.RequestURI, "?")
			count[event.Verb+" "+path]++
		}
	}
	return count
}

// process is a child that ends with the test.
type process struct{ *exec.Cmd }

func run(t *testing.T, binary, name string, args ...string) *process {
	t.Helper()
	cmd := exec.Command(binary, args...)
	cmd.Env = append(os.Environ(), "PPROF=")
	if name == "agent" && os.Getenv("MEMQOS_PROFILES") != "" {
		cmd.Env = append(os.Environ(), "PPROF=127.0.0.1:19812")
	}
	return start(t, cmd)
}

// start starts a command that ends with the test.
func start(t *testing.T, cmd *exec.Cmd) *process {
	t.Helper()
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // may have ended
		_ = cmd.Wait()
	})
	return &process{cmd}
}

// cpu is the processor time that the process has used.
func (p *process) cpu(t *testing.T) time.Duration {
	t.Helper()
	stat := read(t, fmt.Sprintf("/proc/%d/stat", p.Process.Pid))
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	var ticks int64
	for _, field := range fields[11:13] { // utime, stime
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * clockTick
}

// memory is what is resident, in KiB.
func (p *process) memory(t *testing.T) (rss, anonymous int64) {
	t.Helper()
	for line := range strings.Lines(read(t, fmt.Sprintf("/proc/%d/smaps_rollup", p.Process.Pid))) {
		for name, to := range map[string]*int64{"Rss:": &rss, "Anonymous:": &anonymous} {
			if rest, ok := strings.CutPrefix(line, name); ok {
				if _, err := fmt.Sscanf(rest, "%d kB", to); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	return rss, anonymous
}

func read(t *testing.T, file string) string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// write makes a file and its directory, and returns its path.
func write(t *testing.T, dir, name, data string) string {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func get(url string) (string, error) {
	resp, err := http.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close() //nolint:errcheck // read only
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("GET %s: %s", url, resp.Status)
	}
	return string(body), err
}

func ready(url string) error {
	_, err := get(url)
	return err
}

// lines are the series of a metric.
func lines(t *testing.T, url, metric string) string {
	t.Helper()
	body, err := get(url)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for line := range strings.Lines(body) {
		if strings.HasPrefix(line, metric) && !strings.HasSuffix(line, " 0\n") {
			out = append(out, strings.TrimSpace(line))
		}
	}
	return strings.Join(out, ", ")
}

func save(t *testing.T, url, file string) {
	t.Helper()
	body, err := get(url)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Dir(file), filepath.Base(file), body)
}

func eventually(t *testing.T, check func() error) {
	t.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
