package controllers

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	"pgregory.net/rapid"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/memqos/memqos/cgroup"
	"github.com/memqos/memqos/cgroup/cgrouptest"
	"github.com/memqos/memqos/config"
	"github.com/memqos/memqos/ledger"
	"github.com/memqos/memqos/memory"
	"github.com/memqos/memqos/metrics"
	"github.com/memqos/memqos/qos"
	"github.com/memqos/memqos/qos/qostest"
	"github.com/memqos/memqos/status"
)

var (
	idApp     = strings.Repeat("a", 64)
	idInit    = strings.Repeat("b", 64)
	idSandbox = strings.Repeat("c", 64)
	idOther   = strings.Repeat("d", 64)
)

// world is a node on disk and the pods that the API server has.
type world struct {
	testing.TB
	dir      string
	registry *prometheus.Registry
	surveyor *surveyor
	pods     client.Client
	events   *events.FakeRecorder
	pod      *podReconciler
	node     *nodeReconciler
}

func newWorld(t testing.TB, tree string, objects ...client.Object) *world {
	t.Helper()
	w := &world{TB: t, dir: cgrouptest.Make(t, tree), registry: prometheus.NewRegistry()}
	scheme, err := newScheme()
	if err != nil {
		t.Fatal(err)
	}
	w.pods = fake.NewClientBuilder().WithScheme(scheme).WithObjects(objects...).Build()
	m := metrics.New(w.registry, "", "", "")
	c, err := config.Load("")
	if err != nil {
		t.Fatal(err)
	}
	identities, err := newIdentities([]string{filepath.Join(w.dir, "bundles", "<id>", "config.json")}, m, logr.Discard())
	if err != nil {
		t.Fatal(err)
	}
	w.surveyor = &surveyor{
		identities: identities,
		nodeName:   "n", nodes: w.pods, metrics: m, log: logr.Discard(),
		discover: func() (*cgroup.Tree, error) { return cgroup.OpenFixture(w.dir, cgroup.NewLayout(config.Cgroupfs, "/")) },
	}
	w.surveyor.config.Store(c)
	if !w.surveyor.survey(t.Context()) {
		t.Fatal("the fixture is not served")
	}
	w.events = events.NewFakeRecorder(100)
	w.startAgent(t.TempDir())
	return w
}

// startAgent makes the reconcilers anew, as an agent that starts does, with what
// is in a state directory.
func (w *world) startAgent(state string) {
	w.Helper()
	c := w.surveyor.config.Load().DeepCopy()
	c.StateDir = state
	w.surveyor.config.Store(c)
	l, err := ledger.Open(state, "boot")
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { _ = l.Close() })
	m, p, announce := w.surveyor.metrics, newPass(w.surveyor.metrics), newAnnouncer(w.events, "n")
	wr := &writer{ledger: l, metrics: m, contests: newContests(), kubelet: newKubeletFeature(l, m, announce, logr.Discard()), now: func() time.Time { return time.Now().Add(time.Hour) }, dryRun: func() bool { return w.surveyor.config.Load().Mode == config.DryRun }}
	wr.landings = newLandings(l, m, logr.Discard(), func(ctrl.Request) {})
	wr.guard = newStallGuard(w.surveyor, p, announce, m, logr.Discard(), "boot")
	k := newKills(w.pods, w.surveyor, announce, m, logr.Discard())
	w.pod = &podReconciler{w.pods, w.surveyor, p, m, wr, announce, newPodIndex(), k}
	w.node = &nodeReconciler{w.pods, w.surveyor, p, m, wr, announce, k}
}

// announced returns the reasons and notes of the events since it was last asked.
func (w *world) announced() (all []string) {
	for {
		select {
		case e := <-w.events.Events:
			all = append(all, e)
		default:
			return all
		}
	}
}

func (w *world) reconcilePod(name string) (ctrl.Result, error) {
	w.Helper()
	return w.pod.Reconcile(w.Context(), ctrl.Request{NamespacedName: client.ObjectKey{Namespace: "default", Name: name}})
}

func (w *world) reconcileNode() {
	w.Helper()
	if _, err := w.node.Reconcile(w.Context(), ctrl.Request{NamespacedName: client.ObjectKey{Name: "n"}}); err != nil {
		w.Fatal(err)
	}
}

func (w *world) mustReconcilePod(name string) {
	w.Helper()
	if _, err := w.reconcilePod(name); err != nil {
		w.Fatal(err)
	}
}

// wants asserts what the files of a cgroup hold: min, high, max.
func (w *world) wants(cgroup, want string) {
	w.Helper()
	var got []string
	for _, file := range []memory.File{memory.Min, memory.High, memory.Max} {
		got = append(got, cgrouptest.Read(w, filepath.Join(w.dir, cgroup, string(file))))
	}
	if strings.Join(got, " ") != want {
		w.Errorf("%s: min high max are %s, want %s", cgroup, strings.Join(got, " "), want)
	}
}

// writes is the number of writes with a result, over all levels and files.
func (w *world) writes(result metrics.Result) int {
	w.Helper()
	return w.series("memqos_writes_total", "result", string(result))
}

// repairs is the number of repairs of what had a cause, likewise.
func (w *world) repairs(cause metrics.Cause) int {
	w.Helper()
	return w.series("memqos_repairs_total", "cause", string(cause))
}

// series is the sum of a counter's series that have a label.
func (w *world) series(name, label, value string) (n int) {
	w.Helper()
	families, err := w.registry.Gather()
	if err != nil {
		w.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetName() == label && l.GetValue() == value {
					n += int(m.GetCounter().GetValue())
				}
			}
		}
	}
	return n
}

func burstable(name string, request, limit string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: "uid-1"},
		Spec: corev1.PodSpec{
			InitContainers: []corev1.Container{{Name: "init"}},
			Containers: []corev1.Container{{Name: "app", Resources: corev1.ResourceRequirements{
				Requests: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse(request)},
				Limits:   corev1.ResourceList{corev1.ResourceMemory: resource.MustParse(limit)},
			}}},
		},
		Status: corev1.PodStatus{
			QOSClass:              corev1.PodQOSBurstable,
			ContainerStatuses:     []corev1.ContainerStatus{{Name: "app", ContainerID: "containerd://" + idApp}},
			InitContainerStatuses: []corev1.ContainerStatus{{Name: "init", ContainerID: "containerd://" + idInit}}, // has ended
		},
	}
}

const podDir = "kubepods/burstable/poduid-1"

var podTree = strings.Join([]string{
	"kubepods 0 0 max 8589934592",
	"kubepods/burstable",
	"kubepods/besteffort",
	podDir,
	podDir + "/" + idApp + " 0 0 max 134217728",
	podDir + "/" + idSandbox,
}, "\n")

func TestReconcile(t *testing.T) {
	w := newWorld(t, podTree, burstable("p", "64Mi", "128Mi"))
	for range 2 {
		w.mustReconcilePod("p")
		w.reconcileNode()
		w.wants(podDir+"/"+idApp, "67108864 127504384 134217728")
		w.wants(podDir+"/"+idSandbox, "0 max max")
		w.wants(podDir, "67108864 max max")
		w.wants("kubepods/burstable", "67108864 max max")
		w.wants("kubepods/besteffort", "0 max max")
		w.wants("kubepods", "67108864 max 8589934592")
	}
	if got := w.writes(metrics.Written); got != 5 { // min at four levels, high of the container; none the second time
		t.Errorf("%d writes, want 5", got)
	}

	// The pod goes, or ends: nothing stale stays above it.
	var pod corev1.Pod
	if err := w.pods.Get(t.Context(), client.ObjectKey{Namespace: "default", Name: "p"}, &pod); err != nil {
		t.Fatal(err)
	}
	pod.Status.Phase = corev1.PodSucceeded
	if err := w.pods.Status().Update(t.Context(), &pod); err != nil {
		t.Fatal(err)
	}
	w.reconcileNode()
	w.wants("kubepods/burstable", "0 max max")
	w.wants("kubepods", "0 max 8589934592")
	w.mustReconcilePod("p")
	w.wants(podDir, "67108864 max max")
	w.mustReconcilePod("never-heard-of")
}

// crun puts a container's processes into a cgroup of its own within the scope,
// and its resources on both. Other cgroups in there are the container's business.
func TestCrun(t *testing.T) {
	scope := podDir + "/" + idApp
	w := newWorld(t, podTree+"\n"+scope+"/container 0 0 max 134217728\n"+scope+"/other", burstable("p", "64Mi", "128Mi"))
	w.mustReconcilePod("p")
	w.wants(scope, "67108864 127504384 134217728")
	w.wants(scope+"/container", "67108864 127504384 134217728")
	w.wants(scope+"/other", "0 max max")
}

// The kernel lets nobody write the root of their cgroup namespace, so the agent's own
// container is left alone, and is nothing that drifts.
func TestOwnContainer(t *testing.T) {
	w := newWorld(t, podTree, burstable("p", "64Mi", "128Mi"))
	cgrouptest.Write(t, filepath.Join(w.dir, podDir, idApp, "cgroup.procs"), strconv.Itoa(os.Getpid()))
	w.surveyor.site.Store(nil)
	w.surveyor.survey(t.Context())
	w.mustReconcilePod("p")
	w.wants(podDir, "67108864 max max")
	w.wants(podDir+"/"+idApp, "0 max 134217728")
	st, err := view{site: w.surveyor.site.Load()}.status("n", 0, []corev1.Pod{*burstable("p", "64Mi", "128Mi")}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range st.Cgroups {
		if c.Cgroup == podDir+"/"+idApp && (c.Verdict != status.Fulfilled || len(c.Wanted) > 0 || !strings.Contains(c.Reason[memory.High], "own container")) {
			t.Errorf("shown as %+v", c)
		}
	}
}

func TestOverwritesAreRepaired(t *testing.T) {
	w := newWorld(t, podTree, burstable("p", "64Mi", "128Mi"))
	w.mustReconcilePod("p")
	for file, value := range map[string]string{"memory.min": "0", "memory.high": "max"} {
		cgrouptest.Write(t, filepath.Join(w.dir, podDir, idApp, file), value)
	}
	w.mustReconcilePod("p")
	w.wants(podDir+"/"+idApp, "67108864 127504384 134217728")
}

// memory.max is raised at once, and lowered only where usage leaves room.
func TestLimitIsNotLoweredUnderUsage(t *testing.T) {
	w := newWorld(t, strings.ReplaceAll(podTree, idApp+" 0 0 max 134217728", idApp+" 0 0 max 268435456 126500000"), burstable("p", "64Mi", "128Mi"))
	result, err := w.reconcilePod("p")
	if err != nil {
		t.Fatal(err)
	}
	if result.RequeueAfter != retryDeferred {
		t.Errorf("comes back after %v", result.RequeueAfter)
	}
	w.wants(podDir+"/"+idApp, "67108864 127504384 268435456")
	w.mustReconcilePod("p")
	if got := w.writes(metrics.Deferred); got != 2 {
		t.Errorf("%d deferred", got)
	}
	if got := w.announced(); len(got) != 1 || !strings.Contains(got[0], "MemoryLimitPending container app") {
		t.Errorf("announced %q, want one MemoryLimitPending of the container", got)
	}
	cgrouptest.Write(t, filepath.Join(w.dir, podDir, idApp, "memory.current"), "100000000")
	w.mustReconcilePod("p")
	w.wants(podDir+"/"+idApp, "67108864 127504384 134217728")
	cgrouptest.Write(t, filepath.Join(w.dir, podDir, idApp, "memory.max"), "4096")
	w.mustReconcilePod("p")
	w.wants(podDir+"/"+idApp, "67108864 127504384 134217728")
}

// The kubelet and the runtime give a new cgroup its memory.max themselves, a moment
// later than memqos could.
func TestLimitOfANewCgroupIsTheKubelets(t *testing.T) {
	w := newWorld(t, strings.ReplaceAll(podTree, idApp+" 0 0 max 134217728", idApp), burstable("p", "64Mi", "128Mi"))
	w.pod.writer.now = time.Now
	result, err := w.reconcilePod("p")
	if err != nil {
		t.Fatal(err)
	}
	w.wants(podDir+"/"+idApp, "67108864 127504384 max")
	if result.RequeueAfter <= 0 || result.RequeueAfter > newborn {
		t.Errorf("comes back after %v, want within %v", result.RequeueAfter, newborn)
	}
	w.pod.writer.now = func() time.Time { return time.Now().Add(newborn) }
	w.mustReconcilePod("p")
	w.wants(podDir+"/"+idApp, "67108864 127504384 134217728")
}

// A static pod's cgroup is named by an annotation, which anyone may write. It
// counts once a container of the pod's status is found in there.
func TestMirrorPod(t *testing.T) {
	static := burstable("static", "64Mi", "128Mi")
	static.UID = "mirror"
	static.Annotations = map[string]string{cgroup.AnnotationConfigMirror: "uid-1", cgroup.AnnotationConfigHash: "uid-1"}
	w := newWorld(t, podTree, static)
	w.mustReconcilePod("static")
	w.wants(podDir+"/"+idApp, "67108864 127504384 134217728")
	w.wants(podDir, "67108864 max max")

	impostor := static.DeepCopy()
	impostor.Name = "impostor"
	impostor.Status.ContainerStatuses[0].ContainerID = "containerd://" + idOther
	w = newWorld(t, podTree, impostor)
	w.mustReconcilePod("impostor")
	w.wants(podDir+"/"+idApp, "0 max 134217728")
	w.wants(podDir, "0 max max")
}

func TestHostileNames(t *testing.T) {
	evil := burstable("evil", "64Mi", "128Mi")
	evil.UID = "../../system"
	w := newWorld(t, podTree+"\nsystem", evil)
	if _, err := w.reconcilePod("evil"); err == nil || !strings.Contains(err.Error(), "../../system") {
		t.Errorf("got %v, want an error that names the uid", err)
	}
	w.wants("system", "0 max max")
}

// One file that cannot be written leaves the others.
func TestOneBadFile(t *testing.T) {
	w := newWorld(t, podTree, burstable("p", "64Mi", "128Mi"))
	bad := filepath.Join(w.dir, podDir, "memory.min")
	if err := os.Remove(bad); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(bad, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := w.reconcilePod("p"); err == nil || !strings.Contains(err.Error(), bad) {
		t.Errorf("got %v, want an error that names %s", err, bad)
	}
	w.wants(podDir+"/"+idApp, "67108864 127504384 134217728")
}

func TestOrdered(t *testing.T) {
	pod, container := &seen{Cgroup: &qos.Cgroup{Cgroup: "pod"}}, &seen{Cgroup: &qos.Cgroup{Cgroup: "container"}}
	var got []string
	for _, c := range ordered([]change{
		{pod, memory.Min, 10, 5}, {pod, memory.Max, 10, 20},
		{container, memory.Min, 10, 5}, {container, memory.High, memory.Unlimited, 5}, {container, memory.Max, 10, 20},
	}) {
		got = append(got, c.Cgroup.Cgroup+" "+string(c.file))
	}
	want := []string{"pod memory.max", "container memory.max", "container memory.min", "pod memory.min", "container memory.high"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestAllocatableFromNodeStatus(t *testing.T) {
	pod := burstable("p", "64Mi", "128Mi")
	delete(pod.Spec.Containers[0].Resources.Limits, corev1.ResourceMemory)
	tree := strings.ReplaceAll(podTree, "kubepods 0 0 max 8589934592", "kubepods")
	w := newWorld(t, tree, pod)
	w.mustReconcilePod("p")
	w.wants(podDir+"/"+idApp, "67108864 max 134217728") // no Node: left alone

	w = newWorld(t, tree, pod, &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "n"},
		Status:     corev1.NodeStatus{Allocatable: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("1Gi")}},
	})
	w.mustReconcilePod("p")
	w.wants(podDir+"/"+idApp, "67108864 973078528 134217728")
}

func TestSurvey(t *testing.T) {
	w := newWorld(t, podTree, burstable("p", "64Mi", "128Mi"))
	before := w.surveyor.site.Load().tree
	w.surveyor.survey(t.Context())
	if w.surveyor.site.Load().tree != before {
		t.Error("the same tree was exchanged")
	}

	discover := w.surveyor.discover
	w.surveyor.discover = func() (*cgroup.Tree, error) {
		return nil, &cgroup.UnsupportedError{Reason: cgroup.ReasonNoKubepods, Message: "gone"}
	}
	if w.surveyor.survey(t.Context()) {
		t.Error("served without kubepods")
	}
	if n, err := testutil.GatherAndCount(w.registry, "memqos_node_unsupported"); n != 1 || err != nil {
		t.Errorf("%d series of memqos_node_unsupported, %v", n, err)
	}
	w.mustReconcilePod("p")
	w.wants(podDir, "0 max max")

	w.surveyor.discover = discover
	if !w.surveyor.survey(t.Context()) {
		t.Error("kubepods is back and the node is not served")
	}
	w.mustReconcilePod("p")
	w.wants(podDir, "67108864 max max")
}

func TestInspect(t *testing.T) {
	pending := burstable("pending", "1Mi", "2Mi")
	pending.UID = "uid-2"
	p := burstable("p", "64Mi", "128Mi")
	p.Status.InitContainerStatuses[0].State.Terminated = &corev1.ContainerStateTerminated{}
	w := newWorld(t, podTree+"\nkubepods/besteffort/podorphan", p, pending)
	w.mustReconcilePod("p")
	cgrouptest.Write(t, filepath.Join(w.dir, podDir, idApp, "memory.high"), "max")
	var pods corev1.PodList
	if err := w.pods.List(t.Context(), &pods); err != nil {
		t.Fatal(err)
	}
	in, err := view{site: w.surveyor.site.Load()}.status("n", 8589934592, pods.Items, nil)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, o := range in.Cgroups {
		got = append(got, strings.Join([]string{string(o.Level), o.Pod, o.Container, o.Cgroup, string(o.Verdict)}, "|"))
	}
	want := []string{
		"node|||kubepods|Drifted",
		"qos|||kubepods/burstable|Drifted",
		"pod|p||" + podDir + "|Fulfilled",
		"container|p|app|" + podDir + "/" + idApp + "|Drifted",
		"container|p||" + podDir + "/" + idSandbox + "|Unknown",
		"pod|pending|||Pending",
		"container|pending|init||Pending",
		"container|pending|app||Pending",
		"pod|||kubepods/besteffort/podorphan|Unknown",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestVerdict(t *testing.T) {
	wanted := memory.Values{memory.Min: 10, memory.Max: 100}
	for _, tc := range []struct {
		name   string
		wanted memory.Values
		actual memory.Values
		usage  memory.Value
		want   status.Verdict
	}{
		{"as wanted", wanted, memory.Values{memory.Min: 10, memory.Max: 100, memory.High: 7}, 0, status.Fulfilled},
		{"other value", wanted, memory.Values{memory.Min: 11, memory.Max: 100}, 0, status.Drifted},
		{"limit waits", wanted, memory.Values{memory.Min: 10, memory.Max: 200}, 99, status.Pending},
		{"limit could fall", wanted, memory.Values{memory.Min: 10, memory.Max: 200}, 10, status.Drifted},
		{"limit waits and other value", wanted, memory.Values{memory.Min: 11, memory.Max: 200}, 99, status.Drifted},
		{"high lands", memory.Values{memory.High: 100}, memory.Values{memory.High: 200}, 150, status.Pending},
		{"high could fall", memory.Values{memory.High: 100}, memory.Values{memory.High: 200}, 50, status.Drifted},
		{"not planned", nil, memory.Values{memory.Min: 10}, 0, status.Unknown},
	} {
		if got := status.Compare(tc.wanted, tc.actual, tc.usage, limitFits); got != tc.want {
			t.Errorf("%s: got %s, want %s", tc.name, got, tc.want)
		}
	}
}

// Applying ends with the context and says so.
func TestApplyStops(t *testing.T) {
	w := newWorld(t, podTree)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	cgroups, err := look(w.surveyor.site.Load().tree, []qos.Cgroup{{Cgroup: "kubepods", Values: memory.Values{memory.Min: 4096}}})
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(cgroups)
	_, err = w.pod.writer.apply(ctx, logr.Discard(), w.surveyor.site.Load().tree, ctrl.Request{}, cgroups)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	w.wants("kubepods", "0 max 8589934592")
}

func TestStripPod(t *testing.T) {
	full := burstable("p", "64Mi", "128Mi")
	full.Annotations = map[string]string{cgroup.AnnotationConfigHash: "h", cgroup.AnnotationConfigMirror: "h", "secret": "x", qos.AnnotationFactor: "0.5"}
	full.Labels, full.Spec.PriorityClassName = map[string]string{"app": "web"}, "low"
	full.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "PASSWORD", Value: "x"}}
	full.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "debug", Image: "i"}}}
	// A resize of a container and of a pod-level limit, both waiting.
	full.Spec.Resources = &corev1.ResourceRequirements{Limits: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("1Gi")}}
	full.Status.Phase = corev1.PodRunning
	full.Status.Resources = &corev1.ResourceRequirements{Limits: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("512Mi")}}
	full.Status.ContainerStatuses[0].Resources = &corev1.ResourceRequirements{
		Requests: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("32Mi")},
		Limits:   corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("48Mi")},
	}
	full.Status.Reason = "Evicted"
	full.Status.ContainerStatuses[0].LastTerminationState.Terminated = &corev1.ContainerStateTerminated{Reason: "OOMKilled", ExitCode: 137, FinishedAt: metav1.Now(), ContainerID: "containerd://" + idOther}
	full.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "m"}}
	out, err := stripPod(full)
	if err != nil {
		t.Fatal(err)
	}
	stripped := out.(*corev1.Pod)
	if len(stripped.Spec.Containers[0].Env) != 0 || len(stripped.ManagedFields) != 0 || stripped.Annotations["secret"] != "" {
		t.Errorf("kept what is not used: %+v", stripped)
	}
	// What is decided does not depend on what was dropped.
	w := newWorld(t, podTree)
	p := w.surveyor.site.Load().policy
	if diff := cmp.Diff(p.PlanFor([]corev1.Pod{*full}), p.PlanFor([]corev1.Pod{*stripped})); diff != "" {
		t.Errorf("the plan changed (-full +stripped):\n%s", diff)
	}
	if got, want := p.Pod(stripped).Values.String(), "memory.min=33554432"; got != want {
		t.Errorf("a waiting resize is carried out: got %s, want %s", got, want)
	}
	if diff := cmp.Diff(full.Labels, stripped.Labels); diff != "" || stripped.Spec.PriorityClassName != "low" || stripped.Annotations[qos.AnnotationFactor] != "0.5" {
		t.Errorf("rules and annotations lose what they go by: %+v", stripped)
	}
	before, beforeMirror := cgroup.PodUID(full)
	after, afterMirror := cgroup.PodUID(stripped)
	if before != after || beforeMirror != afterMirror || !cmp.Equal(cgroup.ContainerIDs(full), cgroup.ContainerIDs(stripped)) {
		t.Error("the identity changed")
	}
	if diff := cmp.Diff(full.Status.ContainerStatuses[0].LastTerminationState, stripped.Status.ContainerStatuses[0].LastTerminationState); diff != "" || stripped.Status.Reason != "Evicted" {
		t.Errorf("why it ended is lost (reason %q; -full +stripped):\n%s", stripped.Status.Reason, diff)
	}
}

// Nothing that a plan follows from is dropped, in any release.
func TestStripPodKeepsThePlan(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := &config.MemoryQoSConfiguration{EmulationVersion: rapid.SampledFrom(config.EmulationVersions()).Draw(t, "version")}
		c.Rules = qostest.Rules(c.EmulationVersion.HasReservationPolicy()).Draw(t, "rules")
		config.SetDefaults(c)
		p := qos.NewPolicy(c, qos.Node{Allocatable: 8 << 30, PageSize: 4096})
		pods := qostest.Pods().Draw(t, "pods")
		stripped := make([]corev1.Pod, len(pods))
		for i := range pods {
			out, err := stripPod(&pods[i])
			if err != nil {
				t.Fatal(err)
			}
			stripped[i] = *out.(*corev1.Pod)
			before, beforeErrs := p.For(&pods[i])
			after, afterErrs := p.For(&stripped[i])
			if diff := cmp.Diff(before, after) + cmp.Diff(beforeErrs, afterErrs); diff != "" {
				t.Errorf("what applies to the pod changed (-full +stripped):\n%s", diff)
			}
		}
		if diff := cmp.Diff(p.PlanFor(pods), p.PlanFor(stripped)); diff != "" {
			t.Errorf("the plan changed (-full +stripped):\n%s", diff)
		}
	})
}

func TestPass(t *testing.T) {
	reg := prometheus.NewRegistry()
	p := newPass(metrics.New(reg, "", "", ""))
	a, b := ctrl.Request{NamespacedName: client.ObjectKey{Name: "a"}}, ctrl.Request{NamespacedName: client.ObjectKey{Name: "b"}}
	p.pending = map[ctrl.Request]bool{a: true, b: true}
	p.done(a, findings{compared: map[string]int{"pod": 1}})
	p.done(a, findings{compared: map[string]int{"pod": 1}}) // reconciled twice, counted once
	if p.ready(nil) == nil {
		t.Error("ready with an item pending")
	}
	p.done(b, findings{compared: map[string]int{"pod": 1}})
	if err := p.ready(nil); err != nil {
		t.Error(err)
	}
	if err := testutil.GatherAndCompare(reg, strings.NewReader(`
# HELP memqos_cgroups Cgroups that were identified and compared in the last full pass, by level.
# TYPE memqos_cgroups gauge
memqos_cgroups{level="container"} 0
memqos_cgroups{level="node"} 0
memqos_cgroups{level="pod"} 2
memqos_cgroups{level="qos"} 0
`), "memqos_cgroups"); err != nil {
		t.Error(err)
	}
}
