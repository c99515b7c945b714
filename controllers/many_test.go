package controllers

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/memqos/memqos/cgroup/cgrouptest"
	"github.com/memqos/memqos/metrics"
)

// A node with 300 containers: the first pass writes what there is to write, the
// next one reads each file once and writes nothing.
func TestHundredsOfContainers(t *testing.T) {
	const pods, containers = 100, 3
	sandbox := strings.Repeat("c", 64)
	tree := []string{"kubepods 0 0 max 8589934592", "kubepods/burstable"}
	var objects []client.Object
	for i := range pods {
		pod := burstable(fmt.Sprintf("p-%d", i), "16Mi", "32Mi")
		pod.UID = types.UID(fmt.Sprintf("uid-%d", i))
		app := pod.Spec.Containers[0]
		pod.Spec.InitContainers, pod.Spec.Containers = nil, nil
		pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses = nil, nil
		dir := "kubepods/burstable/pod" + string(pod.UID)
		tree = append(tree, dir+" 0 0 max 100663296", dir+"/"+sandbox)
		for j := range containers {
			app.Name = fmt.Sprintf("app-%d", j)
			id := fmt.Sprintf("%064x", i*containers+j)
			pod.Spec.Containers = append(pod.Spec.Containers, *app.DeepCopy())
			pod.Status.ContainerStatuses = append(pod.Status.ContainerStatuses, corev1.ContainerStatus{Name: app.Name, ContainerID: "containerd://" + id})
			tree = append(tree, dir+"/"+id+" 0 0 max 33554432")
		}
		objects = append(objects, pod)
	}
	w := newWorld(t, strings.Join(tree, "\n"), objects...)
	pass := func() {
		for _, o := range objects {
			w.mustReconcilePod(o.GetName())
		}
		w.reconcileNode()
	}
	pass()
	const writes = pods*(1+containers*2) + 2 // memory.min everywhere, memory.high of containers
	if got := w.writes(metrics.Written); got != writes {
		t.Errorf("the first pass wrote %d files, want %d", got, writes)
	}
	w.wants("kubepods", "5033164800 max 8589934592")

	opened := countOpens(t, w.dir)
	pass()
	if got := w.writes(metrics.Written); got != writes {
		t.Errorf("the second pass wrote %d files, want none", got-writes)
	}
	opens := opened()
	for file, n := range opens {
		if n != 1 || strings.Contains(file, sandbox) {
			t.Errorf("%s was opened %d times in a pass; want once, and in no sandbox", file, n)
		}
	}
	if want := pods * containers * 3; len(opens) < want { // min, high and max
		t.Errorf("a pass opened %d files, which cannot be all: there are %d of containers", len(opens), want)
	}
}

// countOpens counts, from now to the call of what it returns, how often each
// memory.* file beneath a directory is opened.
func countOpens(t *testing.T, dir string) func() map[string]int {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	dirs := map[int32]string{}
	err = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		wd, err := unix.InotifyAddWatch(fd, path, unix.IN_OPEN)
		dirs[int32(wd)] = path
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return func() map[string]int {
		opens := map[string]int{}
		buf := make([]byte, 1<<20)
		for {
			n, err := unix.Read(fd, buf)
			if err == unix.EAGAIN {
				return opens
			}
			if err != nil {
				t.Fatal(err)
			}
			for at := 0; at < n; {
				event := (*unix.InotifyEvent)(unsafe.Pointer(&buf[at])) //nolint:gosec // as inotify(7) lays it out
				if event.Mask&unix.IN_Q_OVERFLOW != 0 {
					t.Fatal("more opens than the kernel queues")
				}
				name := string(bytes.TrimRight(buf[at+unix.SizeofInotifyEvent:at+unix.SizeofInotifyEvent+int(event.Len)], "\x00"))
				if strings.HasPrefix(name, "memory.") {
					opens[filepath.Join(dirs[event.Wd], name)]++
				}
				at += unix.SizeofInotifyEvent + int(event.Len)
			}
		}
	}
}

// A container that crashes again and again: each of its cgroups is left alone
// until the status names it, and then gets its values; in between there is none.
func TestCrashLoop(t *testing.T) {
	w := newWorld(t, podTree, burstable("p", "64Mi", "128Mi"))
	w.mustReconcilePod("p")
	previous := idApp
	for i := range 5 {
		if err := os.RemoveAll(filepath.Join(w.dir, podDir, previous)); err != nil {
			t.Fatal(err)
		}
		w.mustReconcilePod("p") // CrashLoopBackOff
		id := fmt.Sprintf("%064x", i)
		cgrouptest.Add(t, w.dir, podDir+"/"+id+" 0 0 max 134217728")
		w.mustReconcilePod("p")
		w.wants(podDir+"/"+id, "0 max 134217728")

		var pod corev1.Pod
		if err := w.pods.Get(t.Context(), client.ObjectKey{Namespace: "default", Name: "p"}, &pod); err != nil {
			t.Fatal(err)
		}
		pod.Status.ContainerStatuses[0].ContainerID = "containerd://" + id
		pod.Status.ContainerStatuses[0].RestartCount++
		if err := w.pods.Status().Update(t.Context(), &pod); err != nil {
			t.Fatal(err)
		}
		w.mustReconcilePod("p")
		w.wants(podDir+"/"+id, "67108864 127504384 134217728")
		w.wants(podDir, "67108864 max max")
		previous = id
	}
}
