//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/memqos/memqos/hack/nodeagent"
	"github.com/memqos/memqos/hack/testnode"
)

// TestCost measures what the agent costs on real cgroups: those of more pods than an
// emulated node could run, made by hand for a node of another name. For MEMQOS_IDLE
// (5m) nothing happens; then one file after the other is overwritten.
func TestCost(t *testing.T) {
	idle := 5 * time.Minute
	if s := os.Getenv("MEMQOS_IDLE"); s != "" {
		var err error
		if idle, err = time.ParseDuration(s); err != nil {
			t.Fatal(err)
		}
	}
	node := bareNode(t, testnode.Options{Kubernetes: "1.27.4", CgroupDriver: "systemd"})
	for _, size := range []struct {
		pods      int
		anonymous int64 // the most, in KiB
	}{{110, 12 << 10}, {500, 20 << 10}} {
		t.Run(fmt.Sprintf("%d pods", size.pods), func(t *testing.T) {
			name := fmt.Sprintf("cost-%d", size.pods)
			dirs := makeCgroups(t, node, name, size.pods)
			agent, err := nodeagent.Install(t.Context(), node, root, fmt.Sprintf(`
apiVersion: memqos.io/v1alpha1
kind: MemoryQoSConfiguration
cgroupRoot: /%s
cgroupDriver: cgroupfs
`, name))
			if err != nil {
				t.Fatal(err)
			}
			agent.NodeName = name
			start(t, agent)
			defer func() {
				if err := agent.Kill(t.Context()); err != nil {
					t.Error(err)
				}
			}()
			time.Sleep(70 * time.Second) // a full pass later

			passes, writes := metric(t, agent, "memqos_full_passes_total", nil), metric(t, agent, "memqos_writes_total", nil)
			began, used := time.Now(), cpuOf(t, node)
			time.Sleep(idle)
			took, used := time.Since(began), cpuOf(t, node)-used
			passes, writes = metric(t, agent, "memqos_full_passes_total", nil)-passes, metric(t, agent, "memqos_writes_total", nil)-writes
			t.Logf("idle: %v of processor time in %v, %.2f %% of the emulated core; %v full passes, the last took %.3f s",
				used, took.Round(time.Second), 100*float64(used)/float64(took), passes, metric(t, agent, "memqos_last_full_pass_duration_seconds", nil))
			if passes == 0 || writes != 0 {
				t.Errorf("%v full passes and %v writes while nothing happens, want some and 0", passes, writes)
			}
			rss, anonymous, huge := memoryOf(t, node)
			t.Logf("RSS %.1f MiB, anonymous %.1f MiB, %.1f of it huge pages", float64(rss)/1024, float64(anonymous)/1024, float64(huge)/1024)
			if anonymous > size.anonymous {
				t.Errorf("anonymous memory is %d KiB, want at most %d", anonymous, size.anonymous)
			}
			watches, unwatched := metric(t, agent, "memqos_watched_cgroups", nil), metric(t, agent, "memqos_unwatched_cgroups", nil)
			t.Logf("%v watches", watches)
			if want := float64(3 + 4*size.pods); watches != want || unwatched != 0 {
				t.Errorf("%v cgroups are watched and %v are not, want %v and 0", watches, unwatched, want)
			}
			t.Logf("system calls of a repair: %s", callsOfRepairs(t, node, dirs[:20]))
		})
	}
}

// makeCgroups makes pods of two containers on a node that does not exist, and their
// cgroups, with that of the sandbox, beneath /name/kubepods. It returns the
// directories of each pod's first container.
func makeCgroups(t *testing.T, node *testnode.Node, name string, n int) (dirs []string) {
	t.Helper()
	config := node.RESTConfig()
	config.QPS, config.Burst = 1000, 1000
	clients, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	id := func(pod, container int) string { return fmt.Sprintf("%064x", 1<<32+pod<<8+container) }
	uids := make([]string, n)
	var group errgroup.Group
	group.SetLimit(10)
	for i := range n {
		group.Go(func() error {
			pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("%s-%d", name, i)}, Spec: corev1.PodSpec{NodeName: name}}
			for _, c := range []string{"one", "two"} {
				pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{Name: c, Image: "example.org/image", Resources: corev1.ResourceRequirements{
					Requests: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("64Mi")},
					Limits:   corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("128Mi")},
				}})
			}
			pod, err := clients.CoreV1().Pods("default").Create(t.Context(), pod, metav1.CreateOptions{})
			if err != nil {
				return err
			}
			uids[i] = string(pod.UID)
			pod.Status = corev1.PodStatus{Phase: corev1.PodRunning, QOSClass: corev1.PodQOSBurstable}
			for j, c := range pod.Spec.Containers {
				pod.Status.ContainerStatuses = append(pod.Status.ContainerStatuses, corev1.ContainerStatus{
					Name: c.Name, ContainerID: "containerd://" + id(i, j+1), State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}},
				})
			}
			_, err = clients.CoreV1().Pods("default").UpdateStatus(t.Context(), pod, metav1.UpdateOptions{})
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	kubepods := "/sys/fs/cgroup/" + name + "/kubepods"
	var pods, containers strings.Builder
	for i, uid := range uids {
		dir := kubepods + "/burstable/pod" + uid
		fmt.Fprintln(&pods, dir)
		for j := range 3 { // the sandbox first
			fmt.Fprintln(&containers, dir+"/"+id(i, j))
		}
		dirs = append(dirs, dir+"/"+id(i, 1))
	}
	for file, list := range map[string]string{"/tmp/pods": pods.String(), "/tmp/containers": containers.String()} {
		if err := node.WriteFile(t.Context(), file, []byte(list), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	sh(t, node, `
		cd /sys/fs/cgroup
		for d in `+name+` `+name+`/kubepods `+name+`/kubepods/burstable; do mkdir $d; echo +memory > $d/cgroup.subtree_control; done
		mkdir `+name+`/kubepods/besteffort
		echo 64G > `+name+`/kubepods/memory.max
		xargs mkdir < /tmp/pods
		while read -r d; do echo 256M > $d/memory.max; echo +memory > $d/cgroup.subtree_control; done < /tmp/pods
		xargs mkdir < /tmp/containers
		grep -v '00$' /tmp/containers | while read -r d; do echo 128M > $d/memory.max; done`)
	return dirs
}

// cpuOf is the processor time that the agent has used.
func cpuOf(t *testing.T, node *testnode.Node) time.Duration {
	t.Helper()
	usec, err := strconv.ParseInt(strings.TrimSpace(sh(t, node, "sed -n 's/^usage_usec //p' /sys/fs/cgroup/system.slice/memqos.service/cpu.stat")), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return time.Duration(usec) * time.Microsecond
}

const mainPID = "$(systemctl show --property=MainPID --value memqos)"

// memoryOf is what is resident of the agent, in KiB.
func memoryOf(t *testing.T, node *testnode.Node) (rss, anonymous, huge int64) {
	t.Helper()
	out := sh(t, node, "cat /proc/"+mainPID+"/smaps_rollup")
	for line := range strings.Lines(out) {
		for name, to := range map[string]*int64{"Rss:": &rss, "Anonymous:": &anonymous, "AnonHugePages:": &huge} {
			if rest, ok := strings.CutPrefix(line, name); ok {
				if _, err := fmt.Sscanf(rest, "%d kB", to); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if anonymous == 0 {
		t.Fatalf("cannot be read: %s", out)
	}
	return rss, anonymous, huge
}

// callsOfRepairs overwrites memory.high in cgroups, one after the other, and says how
// many system calls the agent made for each. All are put right.
func callsOfRepairs(t *testing.T, node *testnode.Node, dirs []string) string {
	t.Helper()
	value := func() string { return sh(t, node, "cat "+strings.Join(dirs, "/memory.high ")+"/memory.high") }
	want := value()
	if strings.Contains(want, "max") {
		t.Fatalf("memory.high is not there to be overwritten:\n%s", want)
	}
	sh(t, node, `
		mountpoint -q `+tracefs+` || mount -t tracefs tracefs `+tracefs+`
		cd `+tracefs+`
		echo 0 > tracing_on
		echo 8192 > buffer_size_kb
		echo event-fork > trace_options
		ls /proc/`+mainPID+`/task > set_event_pid
		echo 1 > events/raw_syscalls/sys_enter/enable
		echo > trace
		echo 1 > tracing_on
		for d in `+strings.Join(dirs, " ")+`; do echo max > $d/memory.high; sleep 0.3; done
		echo 0 > tracing_on
		echo 0 > events/raw_syscalls/sys_enter/enable`)
	eventually(t, "all are put right", func() error {
		if got := value(); got != want {
			return fmt.Errorf("memory.high are\n%s", got)
		}
		return nil
	})
	names := map[int]string{
		unix.SYS_OPENAT2: "openat2", unix.SYS_CLOSE: "close", unix.SYS_PREAD64: "pread64", unix.SYS_FSTAT: "fstat", unix.SYS_GETDENTS64: "getdents64",
		unix.SYS_WRITE: "write", unix.SYS_READ: "read", unix.SYS_FUTEX: "futex", unix.SYS_EPOLL_PWAIT: "epoll_pwait", unix.SYS_NANOSLEEP: "nanosleep",
		unix.SYS_NEWFSTATAT: "newfstatat", unix.SYS_FCNTL: "fcntl", unix.SYS_EPOLL_CTL: "epoll_ctl", unix.SYS_OPENAT: "openat", unix.SYS_SCHED_YIELD: "sched_yield",
	}
	out := sh(t, node, "grep -o 'NR [0-9]*' "+tracefs+"/trace | sort | uniq -c | sort -rn")
	var calls []string
	for line := range strings.Lines(out) {
		var count, number int
		if _, err := fmt.Sscanf(strings.TrimSpace(line), "%d NR %d", &count, &number); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		name, ok := names[number]
		if !ok {
			name = fmt.Sprintf("number %d", number)
		}
		calls = append(calls, fmt.Sprintf("%.1f %s", float64(count)/float64(len(dirs)), name))
	}
	if !slices.ContainsFunc(calls, func(s string) bool { return strings.HasSuffix(s, " openat2") }) {
		t.Errorf("the trace has no openat2: %v", calls)
	}
	return strings.Join(calls, ", ")
}
