package controllers

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/memqos/memqos/cgroup/cgrouptest"
)

// killWorld is a node whose cgroups have all counters.
type killWorld struct{ *world }

func newKillWorld(t *testing.T) *killWorld {
	w := &killWorld{newWorld(t, podTree, burstable("p", "64Mi", "128Mi"))}
	for _, dir := range []string{"kubepods", "kubepods/burstable", "kubepods/besteffort", podDir, podDir + "/" + idApp} {
		w.events(dir, 0, 0, 0)
	}
	w.mustReconcilePod("p")
	w.reconcileNode()
	return w
}

// events sets the counters of a cgroup: its own and, with those beneath, all.
func (w *killWorld) events(dir string, ownOOM, allOOM, allKills int) {
	w.Helper()
	text := func(oom, kills int) string {
		return strings.NewReplacer("O", string(rune('0'+oom)), "K", string(rune('0'+kills))).Replace("low 0\nhigh 0\nmax 0\noom O\noom_kill K\noom_group_kill 0")
	}
	cgrouptest.Write(w, filepath.Join(w.dir, dir, "memory.events.local"), text(ownOOM, 0))
	cgrouptest.Write(w, filepath.Join(w.dir, dir, "memory.events"), text(allOOM, allKills))
}

// told is what is announced once everything that changed has settled.
func (w *killWorld) told() []string {
	w.Helper()
	return w.toldAt(2 * settle)
}

func (w *killWorld) toldAt(later time.Duration) []string {
	w.Helper()
	k, site := w.pod.kills, w.surveyor.site.Load()
	k.lost()
	now := time.Now()
	k.count(site.tree, now)
	for range 2 { // before it tells of what only a class has counted, it reads what is beneath
		k.explain(w.Context(), site, now.Add(later))
	}
	return w.announced()
}

func (w *killWorld) tells(want string) {
	w.Helper()
	w.tellsAt(2*settle, want)
}

func (w *killWorld) tellsAt(later time.Duration, want string) {
	w.Helper()
	if got := w.toldAt(later); len(got) != 1 || !strings.Contains(got[0], want) {
		w.Errorf("announced %q, want one %s", got, want)
	}
	if got := w.told(); len(got) != 0 {
		w.Errorf("announced again: %q", got)
	}
}

func TestKills(t *testing.T) {
	t.Run("container limit", func(t *testing.T) {
		w := newKillWorld(t)
		w.events(podDir+"/"+idApp, 1, 1, 1)
		w.events(podDir, 0, 1, 1)
		w.events("kubepods/burstable", 0, 1, 1)
		w.events("kubepods", 0, 1, 1)
		w.tells("OutOfMemoryContainerLimit container app: the container reached its memory limit of 128Mi")
	})
	t.Run("pod limit", func(t *testing.T) {
		w := newKillWorld(t)
		w.events(podDir+"/"+idApp, 0, 0, 1)
		w.events(podDir, 1, 1, 1)
		w.events("kubepods", 0, 1, 1)
		w.tells("OutOfMemoryPodLimit")
	})
	t.Run("node allocatable", func(t *testing.T) {
		w := newKillWorld(t)
		w.events(podDir+"/"+idApp, 0, 0, 1)
		w.events(podDir, 0, 0, 1)
		w.events("kubepods", 1, 1, 1)
		w.tells("OutOfMemoryKubepodsLimit")
	})
	t.Run("node", func(t *testing.T) {
		w := newKillWorld(t)
		w.events(podDir+"/"+idApp, 0, 0, 1)
		w.events(podDir, 0, 0, 1)
		w.events("kubepods", 0, 0, 1)
		w.tells("OutOfMemoryNodeOutOfMemory")
	})
	t.Run("none", func(t *testing.T) {
		w := newKillWorld(t)
		w.events(podDir+"/"+idApp, 1, 1, 0) // the limit was hit, and reclaim or luck helped
		if got := w.told(); len(got) != 0 {
			t.Errorf("announced %q", got)
		}
	})
}

// groupWorld is a killWorld whose pod has a second container, of which memory.oom.group
// of the pod has killed both.
func groupWorld(t *testing.T) (w *killWorld, second string) {
	id := strings.Repeat("5", 64)
	second = podDir + "/" + id
	p := burstable("p", "64Mi", "128Mi")
	p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: "second"})
	p.Status.ContainerStatuses = append(p.Status.ContainerStatuses, corev1.ContainerStatus{Name: "second", ContainerID: "containerd://" + id})
	w = &killWorld{newWorld(t, podTree+"\n"+second, p)}
	for _, dir := range []string{"kubepods", "kubepods/burstable", podDir, podDir + "/" + idApp, second} {
		w.events(dir, 0, 0, 0)
	}
	w.mustReconcilePod("p")
	w.reconcileNode()
	w.events(podDir+"/"+idApp, 0, 0, 1)
	w.events(podDir, 1, 1, 2)
	cgrouptest.Write(t, filepath.Join(w.dir, podDir, "memory.events.local"), "low 0\nhigh 0\nmax 0\noom 1\noom_kill 0\noom_group_kill 1")
	w.events("kubepods/burstable", 0, 1, 2)
	w.events("kubepods", 0, 1, 2)
	return w, second
}

// The second is noticed a moment after the first.
func TestGroupKill(t *testing.T) {
	w, second := groupWorld(t)
	k, site := w.pod.kills, w.surveyor.site.Load()
	now := time.Now()
	for _, dir := range []string{podDir + "/" + idApp, podDir, "kubepods"} {
		k.counted(dir)
	}
	k.count(site.tree, now)
	w.events(second, 0, 0, 1)
	k.counted(second)
	k.count(site.tree, now.Add(settle/2))
	k.explain(w.Context(), site, now.Add(settle))
	got := w.announced()
	if len(got) != 1 {
		t.Errorf("announced %q, want that of app: the other may go on", got)
	}
	k.explain(w.Context(), site, now.Add(3*settle/2))
	got = append(got, w.announced()...)
	if len(got) != 2 || !strings.Contains(got[0], "OutOfMemoryGroupKill") || !strings.Contains(got[1], "OutOfMemoryGroupKill") {
		t.Errorf("announced %q, want two OutOfMemoryGroupKill", got)
	}
	k.explain(w.Context(), site, now.Add(3*settle))
	if got := w.announced(); len(got) != 0 {
		t.Errorf("announced again: %q", got)
	}
}

// The second is noticed when the first is told already; then nothing of it is left, and
// what comes next is told by itself.
func TestGroupKillInTwo(t *testing.T) {
	w, second := groupWorld(t)
	if got := w.told(); len(got) != 1 || !strings.Contains(got[0], "OutOfMemoryGroupKill container app") {
		t.Errorf("announced %q, want that of app", got)
	}
	k, site := w.pod.kills, w.surveyor.site.Load()
	count := func() []string {
		for _, dir := range []string{second, podDir, "kubepods/burstable", "kubepods"} {
			k.counted(dir)
		}
		now := time.Now()
		k.count(site.tree, now)
		k.explain(w.Context(), site, now.Add(2*settle))
		return w.announced()
	}
	w.events(second, 0, 0, 1)
	if got := count(); len(got) != 1 || !strings.Contains(got[0], "OutOfMemoryGroupKill container second") {
		t.Errorf("announced %q, want that of second", got)
	}
	w.events(second, 1, 1, 2)
	w.events(podDir, 1, 2, 3)
	w.events("kubepods", 0, 2, 3)
	if got := count(); len(got) != 1 || !strings.Contains(got[0], "OutOfMemoryContainerLimit container second") {
		t.Errorf("announced %q, want ContainerLimit of second", got)
	}
	if again := k.explain(w.Context(), site, time.Now()); again != idle {
		t.Error("something is still to be told")
	}
}

// The second's counters went with its cgroup: the pod's tell that there was another, and
// its status which.
func TestGroupKillOfOneThatIsGone(t *testing.T) {
	w, second := groupWorld(t)
	if err := os.RemoveAll(filepath.Join(w.dir, second)); err != nil {
		t.Fatal(err)
	}
	if got := w.told(); len(got) != 1 || !strings.Contains(got[0], "OutOfMemoryGroupKill container app") {
		t.Errorf("announced %q, want that of app", got)
	}
	w.status(func(s *corev1.PodStatus) {
		for i := range s.ContainerStatuses {
			s.ContainerStatuses[i].State.Terminated = &corev1.ContainerStateTerminated{ExitCode: 137, Reason: "OOMKilled", FinishedAt: metav1.Now()}
		}
	})
	w.tells("OutOfMemoryGroupKill container second")
}

// With crun the scope and what is in it count the same kill: it is told once.
func TestKillWithCrun(t *testing.T) {
	scope := podDir + "/" + idApp
	w := &killWorld{newWorld(t, podTree+"\n"+scope+"/container 0 0 max 134217728", burstable("p", "64Mi", "128Mi"))}
	dirs := []string{"kubepods", "kubepods/burstable", podDir, scope, scope + "/container"}
	for _, dir := range dirs {
		w.events(dir, 0, 0, 0)
	}
	w.mustReconcilePod("p")
	w.reconcileNode()
	w.events(scope+"/container", 1, 1, 1)
	for _, dir := range dirs[:4] {
		w.events(dir, 0, 1, 1)
	}
	w.pod.kills.counted(scope + "/container")
	w.tells("OutOfMemoryContainerLimit container app")
}

// The counters went with the cgroup before they were read: the pod's have kept the
// kill, and its status says whose it was.
func TestKillOfAContainerThatIsGone(t *testing.T) {
	w := newKillWorld(t)
	if err := os.RemoveAll(filepath.Join(w.dir, podDir, idApp)); err != nil {
		t.Fatal(err)
	}
	w.events(podDir, 0, 1, 1)
	w.events("kubepods", 0, 1, 1)
	if got := w.told(); len(got) != 0 {
		t.Errorf("announced %q before the status tells whose it was", got)
	}
	w.status(func(s *corev1.PodStatus) {
		s.ContainerStatuses[0].LastTerminationState.Terminated = &corev1.ContainerStateTerminated{ExitCode: 137, Reason: "OOMKilled", FinishedAt: metav1.Now()}
	})
	w.tells("OutOfMemoryContainerLimit container app")
}

// The pod is known to have lost a process, and its status never tells of which container.
func TestKillOfAChildThatIsGone(t *testing.T) {
	w := newKillWorld(t)
	if err := os.RemoveAll(filepath.Join(w.dir, podDir, idApp)); err != nil {
		t.Fatal(err)
	}
	w.events(podDir, 0, 0, 1)
	w.events("kubepods/burstable", 0, 0, 1)
	w.events("kubepods", 0, 0, 1)
	if got := w.told(); len(got) != 0 {
		t.Errorf("announced %q before the status has had its time", got)
	}
	w.tellsAt(reported+settle, "OutOfMemoryNodeOutOfMemory pod: the node ran out of memory")
}

// The sandbox is killed with the group and has no counters that are followed: of it
// nothing is told, then or when the pod is deleted.
func TestGroupKillTakesTheSandbox(t *testing.T) {
	for name, later := range map[string]func(*killWorld){
		"pod stays": func(*killWorld) {},
		"pod goes": func(w *killWorld) {
			if err := w.pods.Delete(w.Context(), burstable("p", "64Mi", "128Mi")); err != nil {
				w.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w, second := groupWorld(t)
			w.events(second, 0, 0, 1)
			w.events(podDir, 1, 1, 3)
			cgrouptest.Write(t, filepath.Join(w.dir, podDir, "memory.events.local"), "low 0\nhigh 0\nmax 0\noom 1\noom_kill 0\noom_group_kill 1")
			w.events("kubepods/burstable", 0, 1, 3)
			w.events("kubepods", 0, 1, 3)
			if got := w.told(); len(got) != 2 {
				t.Errorf("announced %q, want two", got)
			}
			later(w)
			for _, later := range []time.Duration{settle, linger + 2*settle, reported + settle} {
				if got := w.toldAt(later); len(got) != 0 {
					t.Errorf("announced after %v: %q", later, got)
				}
			}
			for dir, tally := range w.pod.kills.tallies {
				if tally.pending() {
					t.Errorf("%s waits for more", dir)
				}
			}
		})
	}
}

// Both were killed and are gone; the status tells of them one after the other.
func TestKillsOfContainersThatAreGone(t *testing.T) {
	w, second := groupWorld(t)
	for _, dir := range []string{second, podDir + "/" + idApp} {
		if err := os.RemoveAll(filepath.Join(w.dir, dir)); err != nil {
			t.Fatal(err)
		}
	}
	for i, name := range []string{"app", "second"} {
		w.status(func(s *corev1.PodStatus) {
			s.ContainerStatuses[i].State.Terminated = &corev1.ContainerStateTerminated{ExitCode: 137, Reason: "OOMKilled", FinishedAt: metav1.Now()}
		})
		w.tells("OutOfMemoryGroupKill container " + name)
	}
}

// The pod that is killed now is another than the one of its name that was.
func TestKillOfAPodOfTheSameName(t *testing.T) {
	w := newKillWorld(t)
	if err := os.RemoveAll(filepath.Join(w.dir, podDir, idApp)); err != nil {
		t.Fatal(err)
	}
	w.events(podDir, 0, 1, 1)
	if err := w.pods.Delete(t.Context(), burstable("p", "64Mi", "128Mi")); err != nil {
		t.Fatal(err)
	}
	another := burstable("p", "64Mi", "128Mi")
	another.UID = "uid-2"
	if err := w.pods.Create(t.Context(), another); err != nil {
		t.Fatal(err)
	}
	w.ends(corev1.ContainerStateTerminated{ExitCode: 137, Reason: "OOMKilled"}, "")
	for _, later := range []time.Duration{2 * settle, reported + settle} {
		if got := w.toldAt(later); len(got) != 0 {
			t.Errorf("announced %q", got)
		}
	}
}

// What the kernel told of was lost: the counters of all are read.
func TestKillThatWasLost(t *testing.T) {
	w := newKillWorld(t)
	w.events(podDir+"/"+idApp, 1, 1, 1)
	w.events(podDir, 0, 1, 1)
	w.events("kubepods/burstable", 0, 1, 1)
	w.events("kubepods", 0, 1, 1)
	k, site, now := w.pod.kills, w.surveyor.site.Load(), time.Now()
	k.counted("kubepods")
	k.count(site.tree, now)
	for i := range 4 {
		k.explain(w.Context(), site, now.Add(time.Duration(i)*settle))
	}
	if got := w.announced(); len(got) != 1 || !strings.Contains(got[0], "OutOfMemoryContainerLimit container app") {
		t.Errorf("announced %q, want ContainerLimit of app", got)
	}
}

// vanishedWorld is a killWorld whose pod's cgroup is gone with the counters of a kill.
func vanishedWorld(t *testing.T) *killWorld {
	w := newKillWorld(t)
	if err := os.RemoveAll(filepath.Join(w.dir, podDir)); err != nil {
		t.Fatal(err)
	}
	w.events("kubepods/burstable", 0, 0, 1)
	w.events("kubepods", 0, 0, 1)
	return w
}

// ends has the pod's container end, and the pod for a reason.
func (w *killWorld) ends(exit corev1.ContainerStateTerminated, reason string) {
	w.Helper()
	exit.FinishedAt = metav1.Now()
	w.status(func(s *corev1.PodStatus) {
		s.ContainerStatuses[0].State = corev1.ContainerState{Terminated: &exit}
		s.Reason = reason
	})
}

// status changes the pod's.
func (w *killWorld) status(change func(*corev1.PodStatus)) {
	w.Helper()
	var pod corev1.Pod
	if err := w.pods.Get(w.Context(), client.ObjectKey{Namespace: "default", Name: "p"}, &pod); err != nil {
		w.Fatal(err)
	}
	change(&pod.Status)
	if err := w.pods.Status().Update(w.Context(), &pod); err != nil {
		w.Fatal(err)
	}
}

func TestKillOfAPodThatIsGone(t *testing.T) {
	t.Run("OOMKilled", func(t *testing.T) {
		w := vanishedWorld(t)
		if got := w.told(); len(got) != 0 {
			t.Errorf("announced %q before the status tells whose it was", got)
		}
		w.ends(corev1.ContainerStateTerminated{ExitCode: 137, Reason: "OOMKilled"}, "")
		w.tells("OutOfMemoryNodeOutOfMemory container app: the node ran out of memory")
	})
	t.Run("the runtime missed it", func(t *testing.T) {
		w := vanishedWorld(t)
		w.ends(corev1.ContainerStateTerminated{ExitCode: 137, Reason: "Error"}, "")
		w.tells("OutOfMemoryNodeOutOfMemory container app")
	})
	t.Run("at some limit", func(t *testing.T) {
		w := vanishedWorld(t)
		w.events("kubepods/burstable", 0, 1, 1)
		w.events("kubepods", 0, 1, 1)
		w.ends(corev1.ContainerStateTerminated{ExitCode: 137, Reason: "OOMKilled"}, "")
		w.tells("OutOfMemoryUnknown container app")
	})
	// The kill was of another pod's, of which nothing is known.
	for name, end := range map[string]func(*killWorld){
		"evicted":         func(w *killWorld) { w.ends(corev1.ContainerStateTerminated{ExitCode: 137, Reason: "Error"}, "Evicted") },
		"ended by itself": func(w *killWorld) { w.ends(corev1.ContainerStateTerminated{ExitCode: 1, Reason: "Error"}, "") },
		"runs":            func(*killWorld) {},
	} {
		t.Run(name, func(t *testing.T) {
			w := vanishedWorld(t)
			end(w)
			if got := w.told(); len(got) != 0 {
				t.Errorf("announced %q", got)
			}
			w.tellsAt(reported+settle, "OutOfMemoryNodeOutOfMemory a container of a Burstable pod that is not known any more: the node ran out of memory")
		})
	}
}

// A container of several processes is killed as a group: it is told of once.
func TestKillOfAGroupThatIsGone(t *testing.T) {
	w := vanishedWorld(t)
	for _, dir := range []string{"kubepods/burstable", "kubepods"} {
		cgrouptest.Write(t, filepath.Join(w.dir, dir, "memory.events"), "low 0\nhigh 0\nmax 0\noom 0\noom_kill 3\noom_group_kill 1")
	}
	w.ends(corev1.ContainerStateTerminated{ExitCode: 137, Reason: "OOMKilled"}, "")
	w.tells("OutOfMemoryNodeOutOfMemory container app")
	if got := w.toldAt(reported + settle); len(got) != 0 {
		t.Errorf("announced again: %q", got)
	}
}

// A probe kills a Burstable pod's container while a kill is open that only a class has
// counted: the pod has its cgroup, which has counted none. Nothing is planned for the
// BestEffort class, whose pods are killed first; it is counted all the same.
func TestKillBesideAPodThatIsThere(t *testing.T) {
	for dir, class := range map[string]string{"kubepods/besteffort": "BestEffort", "kubepods/burstable": "Burstable"} {
		t.Run(class, func(t *testing.T) {
			w := newKillWorld(t)
			w.events(dir, 0, 0, 1)
			w.events("kubepods", 0, 0, 1)
			w.ends(corev1.ContainerStateTerminated{ExitCode: 137, Reason: "Error"}, "")
			if got := w.told(); len(got) != 0 {
				t.Errorf("announced %q", got)
			}
			w.tellsAt(reported+settle, "OutOfMemoryNodeOutOfMemory a container of a "+class+" pod")
		})
	}
}

// One is told of by its own counters, and the other of the same class, whose pod is gone,
// all the same; once each.
func TestKillBesideAPodThatIsGone(t *testing.T) {
	w := newKillWorld(t)
	w.events(podDir+"/"+idApp, 1, 1, 1)
	w.events(podDir, 0, 1, 1)
	w.events("kubepods/burstable", 0, 1, 2)
	w.events("kubepods", 0, 1, 2)
	// That the pod's own container ends is of the kill that is told.
	w.ends(corev1.ContainerStateTerminated{ExitCode: 137, Reason: "OOMKilled"}, "")
	w.tells("OutOfMemoryContainerLimit container app")
	w.tellsAt(reported+settle, "a container of a Burstable pod that is not known any more")
	w.events("kubepods/burstable", 0, 1, 3)
	w.events("kubepods", 0, 1, 3)
	w.events(podDir+"/"+idApp, 1, 1, 2)
	w.events(podDir, 0, 1, 2)
	w.tells("OutOfMemoryNodeOutOfMemory container app")
}
