package controllers

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/memqos/memqos/cgroup/cgrouptest"
	"github.com/memqos/memqos/memory"
	"github.com/memqos/memqos/metrics"
)

// bystander is a node on which pods p0, p1, ... of 64Mi/128Mi run, each in the
// cgroup of its uid, beside whatever else writes there.
type bystander struct{ *world }

// What the cgroups of a pod and its container hold.
const (
	untouched   = "0 0 max 134217728"
	byKubelet   = "67108864 0 max 134217728"
	ofContainer = "0 0 max 134217728"
	atHalf      = "67108864 0 100663296 134217728" // as a kubelet with factor 0.5
	atNine      = "67108864 127504384 134217728"   // as memqos: min, high, max
)

func newBystander(t *testing.T) *bystander {
	return &bystander{newWorld(t, "kubepods 0 0 max 8589934592\nkubepods/burstable\nkubepods/besteffort")}
}

// add makes a pod that runs, with what its cgroups hold.
func (b *bystander) add(i int, podValues, containerValues string) {
	b.Helper()
	name := fmt.Sprintf("p%d", i)
	id := strings.Repeat(fmt.Sprintf("%x", i), 64)
	pod := burstable(name, "64Mi", "128Mi")
	pod.UID = types.UID(name)
	pod.Spec.InitContainers, pod.Status.InitContainerStatuses = nil, nil
	pod.Status.ContainerStatuses[0].ContainerID = "containerd://" + id
	pod.Status.ContainerStatuses[0].State = isRunning
	if err := b.pods.Create(b.Context(), pod); err != nil {
		b.Fatal(err)
	}
	dir := "kubepods/burstable/pod" + name
	cgrouptest.Add(b, b.dir, dir+" "+podValues+"\n"+dir+"/"+id+" "+containerValues)
}

func (b *bystander) container(i int) string {
	return fmt.Sprintf("kubepods/burstable/podp%d/%s", i, strings.Repeat(fmt.Sprintf("%x", i), 64))
}

func (b *bystander) set(cgroup, file, value string) {
	b.Helper()
	cgrouptest.Write(b, filepath.Join(b.dir, cgroup, file), value)
}

// fullPass is what the agent does once in a while.
func (b *bystander) fullPass() {
	b.Helper()
	var pods corev1.PodList
	if err := b.pods.List(b.Context(), &pods); err != nil {
		b.Fatal(err)
	}
	if err := b.pod.writer.kubelet.giveBack(b.surveyor.site.Load().tree); err != nil {
		b.Fatal(err)
	}
	for i := range pods.Items {
		b.mustReconcilePod(pods.Items[i].Name)
	}
	b.reconcileNode()
}

func (b *bystander) lookFirst() {
	b.Helper()
	a := &agent{surveyor: b.surveyor}
	if err := a.lookFirst(b.Context(), b.pods, b.pod, b.node); err != nil {
		b.Fatal(err)
	}
}

func (b *bystander) leaves(file memory.File, want bool) {
	b.Helper()
	if got := b.pod.writer.kubelet.manages(file); got != want {
		b.Errorf("%s left to the kubelet: %t, want %t", file, got, want)
	}
}

// The kubelet was there first, with another factor: memqos writes nothing.
func TestStandsDownAtStart(t *testing.T) {
	b := newBystander(t)
	b.set("kubepods", "memory.min", "134217728")
	b.set("kubepods/burstable", "memory.min", "134217728")
	b.add(0, byKubelet, atHalf)
	b.add(1, byKubelet, atHalf)
	b.lookFirst()
	b.leaves(memory.Min, true)
	b.leaves(memory.High, true)
	b.fullPass()
	b.wants(b.container(0), "67108864 100663296 134217728")
	if got := b.writes(metrics.Written); got != 0 {
		t.Errorf("%d writes beside a kubelet that does it already", got)
	}
	if got := b.announced(); len(got) != 2 || !strings.Contains(got[0], "MemoryQoSStandDown") || !strings.Contains(got[1], "MemoryQoSStandDown") {
		t.Errorf("announced %q, want that it stands down for protection and throttling", got)
	}
}

// The kubelet is restarted with its gate on: what it writes to new pods tells, and
// what memqos wrote over is given back.
func TestStandsDownLater(t *testing.T) {
	b := newBystander(t)
	b.add(0, untouched, ofContainer)
	b.lookFirst()
	b.fullPass()
	b.wants(b.container(0), atNine)
	b.leaves(memory.Min, false)

	b.add(1, byKubelet, atHalf)
	b.fullPass()
	b.leaves(memory.High, false) // one witness is none
	b.wants(b.container(1), atNine)
	b.add(2, byKubelet, atHalf)
	b.set("kubepods/burstable", "memory.min", "201326592")
	b.fullPass()
	b.fullPass()
	b.leaves(memory.Min, true)
	b.leaves(memory.High, true)
	b.wants(b.container(1), "67108864 100663296 134217728")
	b.wants(b.container(2), "67108864 100663296 134217728")
	b.wants(b.container(0), atNine) // no kubelet has a value for it
}

// What memqos wrote before it was restarted is its own.
func TestRestartDoesNotStandDown(t *testing.T) {
	b := newBystander(t)
	b.add(0, untouched, ofContainer)
	b.add(1, untouched, ofContainer)
	b.fullPass()
	state := t.TempDir()
	data, err := os.ReadFile(b.pod.writer.ledger.Path())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(state, "ledger"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	b.startAgent(state)
	b.lookFirst()
	b.fullPass()
	b.leaves(memory.Min, false)
	b.leaves(memory.High, false)
}

// With the state lost, what memqos wrote looks like a kubelet's: the first pods
// that come without put it right.
func TestResumes(t *testing.T) {
	b := newBystander(t)
	b.add(0, untouched, ofContainer)
	b.add(1, untouched, ofContainer)
	b.fullPass()
	b.startAgent(t.TempDir())
	b.lookFirst()
	b.leaves(memory.Min, true)
	b.leaves(memory.High, true)
	b.announced()

	b.add(2, untouched, ofContainer)
	b.fullPass()
	b.wants(b.container(2), "0 max 134217728")
	b.add(3, untouched, ofContainer)
	b.fullPass()
	b.fullPass()
	b.leaves(memory.Min, false)
	b.leaves(memory.High, false)
	for i := range 4 {
		b.wants(b.container(i), atNine)
	}
	if got := b.announced(); len(got) != 2 || !strings.Contains(got[0], "MemoryQoSResumed") {
		t.Errorf("announced %q, want that it has resumed both", got)
	}
}

// systemd resets the Burstable class where no kubelet protects it.
func TestResumesByTheClass(t *testing.T) {
	b := newBystander(t)
	b.add(0, byKubelet, ofContainer)
	b.add(1, byKubelet, ofContainer)
	now := time.Now()
	b.pod.writer.kubelet.now = func() time.Time { return now }
	b.lookFirst()
	b.leaves(memory.Min, true)
	b.fullPass()
	now = now.Add(classPatience - time.Second)
	b.fullPass()
	b.leaves(memory.Min, true)
	now = now.Add(2 * time.Second)
	b.fullPass()
	b.leaves(memory.Min, false)
}

// A hand writes what no kubelet would, or to one cgroup, or long after the
// container was made.
func TestAHandIsNoKubelet(t *testing.T) {
	b := newBystander(t)
	b.add(0, untouched, ofContainer)
	b.add(1, untouched, ofContainer)
	b.fullPass()
	b.pod.writer.kubelet.now = func() time.Time { return time.Now().Add(time.Hour) }
	for i := range 2 {
		b.set(b.container(i), "memory.high", "100663296")
	}
	b.set("kubepods/burstable/podp0", "memory.min", "1048576")
	b.fullPass()
	b.leaves(memory.Min, false)
	b.leaves(memory.High, false)
	b.wants(b.container(0), atNine)
}

func TestAnnouncesAChangeOnce(t *testing.T) {
	b := newBystander(t)
	a := newAnnouncer(b.events, "n")
	pod := burstable("p", "1Mi", "2Mi")
	for _, holds := range []bool{false, true, true, false, true} {
		a.pod(pod, "app", holds, corev1.EventTypeWarning, "Reason", "Action", "note")
	}
	if got := b.announced(); len(got) != 2 {
		t.Errorf("announced %q, want it twice", got)
	}
	a.forget(client.ObjectKeyFromObject(pod))
	a.pod(pod, "app", true, corev1.EventTypeWarning, "Reason", "Action", "note")
	if got := b.announced(); len(got) != 1 {
		t.Errorf("announced %q of a new pod, want it once", got)
	}
}
