package qos

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/memqos/memqos/config"
	"github.com/memqos/memqos/memory"
)

func policy(t *testing.T, version string, factor float64, node Node) Policy {
	t.Helper()
	return policyReserving(t, version, "", factor, node)
}

func policyReserving(t *testing.T, version string, reserve config.MemoryReservationPolicy, factor float64, node Node) Policy {
	t.Helper()
	c := &config.MemoryQoSConfiguration{EmulationVersion: config.EmulationVersion(version), MemoryReservationPolicy: reserve}
	if factor != 0 {
		c.MemoryThrottlingFactor = &factor
	}
	config.SetDefaults(c)
	if errs := config.Validate(c); len(errs) > 0 {
		t.Fatal(errs.ToAggregate())
	}
	c.Rails.ReclaimMargin = new(0.0) // as a kubelet
	return NewPolicy(c, node)
}

// container makes a container from "request/limit" in memory; "-" is not given.
func container(name, memoryText string) corev1.Container {
	request, limit, _ := strings.Cut(memoryText, "/")
	c := corev1.Container{Name: name, Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{}, Limits: corev1.ResourceList{}}}
	if request != "-" {
		c.Resources.Requests[corev1.ResourceMemory] = resource.MustParse(request)
	}
	if limit != "-" {
		c.Resources.Limits[corev1.ResourceMemory] = resource.MustParse(limit)
	}
	return c
}

func pod(class corev1.PodQOSClass, containers ...corev1.Container) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "p", UID: "6a1f3b52-7a3c-4a2c-9a55-0d3d0d0d0d0d"},
		Spec:       corev1.PodSpec{Containers: containers},
		Status:     corev1.PodStatus{QOSClass: class},
	}
}

const gi32 = 32 << 30

// The rows of kuberuntime_container_linux_test.go of 1.22 and 1.27 (4 KiB pages,
// allocatable 32Gi), of the KEP's table and examples, and of e2e_node.
func TestContainerUpstreamRows(t *testing.T) {
	page4k, page1 := Node{Allocatable: gi32, PageSize: 4096}, Node{Allocatable: gi32, PageSize: 1}
	for _, tc := range []struct {
		version   string
		factor    float64
		node      Node
		container string // request/limit
		want      string
	}{
		{"1.27", .9, page4k, "128Mi/256Mi", "memory.min=134217728 memory.high=255012864 memory.max=268435456"},
		{"1.27", .9, page4k, "128Mi/-", "memory.min=134217728 memory.high=30937186304"},
		{"1.22", .8, page4k, "128Mi/256Mi", "memory.min=134217728 memory.high=214745088 memory.max=268435456"}, // 214748364 floored by the kernel
		{"1.22", .8, page4k, "128Mi/-", "memory.min=134217728 memory.high=27487789056"},                        // 27487790694 floored
		{"1.22", .8, page1, "128Mi/256Mi", "memory.min=134217728 memory.high=214748364 memory.max=268435456"},
		{"1.22", .8, page1, "128Mi/-", "memory.min=134217728 memory.high=27487790694"},
		// KEP-2570, table of the 1.27 formula.
		{"1.27", .9, page1, "0/1000", "memory.min=0 memory.high=900 memory.max=1000"},
		{"1.27", .9, page1, "100/1000", "memory.min=100 memory.high=910 memory.max=1000"},
		{"1.27", .9, page1, "200/1000", "memory.min=200 memory.high=920 memory.max=1000"},
		{"1.27", .9, page1, "300/1000", "memory.min=300 memory.high=930 memory.max=1000"},
		{"1.27", .9, page1, "400/1000", "memory.min=400 memory.high=940 memory.max=1000"},
		{"1.27", .9, page1, "500/1000", "memory.min=500 memory.high=950 memory.max=1000"},
		{"1.27", .9, page1, "600/1000", "memory.min=600 memory.high=960 memory.max=1000"},
		{"1.27", .9, page1, "700/1000", "memory.min=700 memory.high=970 memory.max=1000"},
		{"1.27", .9, page1, "800/1000", "memory.min=800 memory.high=980 memory.max=1000"},
		{"1.27", .9, page1, "900/1000", "memory.min=900 memory.high=990 memory.max=1000"},
		{"1.27", .9, page1, "1000/1000", "memory.min=1000 memory.high=max memory.max=1000"},
		// KEP-2570, examples.
		{"1.27", .6, page4k, "500Mi/1000Mi", "memory.min=524288000 memory.high=838860800 memory.max=1048576000"},
		{"1.27", .6, page4k, "800Mi/1000Mi", "memory.min=838860800 memory.high=964689920 memory.max=1048576000"},
		{"1.27", .8, page4k, "500Mi/1000Mi", "memory.min=524288000 memory.high=943718400 memory.max=1048576000"},
		{"1.27", .8, page4k, "850Mi/1000Mi", "memory.min=891289600 memory.high=1017118720 memory.max=1048576000"},
		{"1.27", .4, page4k, "500Mi/1000Mi", "memory.min=524288000 memory.high=734003200 memory.max=1048576000"},
		{"1.27", .4, page4k, "1000Mi/1000Mi", "memory.min=1048576000 memory.high=max memory.max=1048576000"},
		// e2e_node.
		{"1.35", .9, page4k, "256Mi/512Mi", "memory.min=268435456 memory.high=510025728 memory.max=536870912"},
		{"1.35", .9, page4k, "64Mi/512Mi", "memory.min=67108864 memory.high=489893888 memory.max=536870912"},
		{"1.35", .9, page4k, "480Mi/512Mi", "memory.min=503316480 memory.high=533512192 memory.max=536870912"},
		{"1.35", .9, page4k, "512Mi/512Mi", "memory.min=536870912 memory.high=max memory.max=536870912"},
		{"1.35", .9, page4k, "160Mi/320Mi", "memory.min=167772160 memory.high=318767104 memory.max=335544320"},
		// The default factor is the release's.
		{"1.26", 0, page1, "0/1000", "memory.min=0 memory.high=800 memory.max=1000"},
		{"1.27", 0, page1, "0/1000", "memory.min=0 memory.high=900 memory.max=1000"},
		// Neither request nor limit: all of 1.22 to 1.26, none from 1.27.
		{"1.22", .8, page1, "-/-", "memory.min=0 memory.high=27487790694"},
		{"1.27", .9, page4k, "-/-", "memory.min=0 memory.high=max"},
		{"1.27", .9, page4k, "0/0", "memory.min=0 memory.high=max"},
		// Not above the request: not written.
		{"1.22", .8, page4k, "900Mi/1000Mi", "memory.min=943718400 memory.high=max memory.max=1048576000"},
		{"1.27", .9, page4k, "4096/4097", "memory.min=4096 memory.high=max memory.max=4096"},
		{"1.27", .9, page4k, "64Gi/-", "memory.min=68719476736 memory.high=max"},
		// Odd bytes.
		{"1.27", .9, page4k, "1/-", "memory.min=0 memory.high=30923763712"},
		{"1.27", .9, page4k, "100000001/200000003", "memory.min=99999744 memory.high=189997056 memory.max=199999488"},
		{"1.27", .9, Node{Allocatable: gi32, PageSize: 65536}, "128Mi/256Mi", "memory.min=134217728 memory.high=255000576 memory.max=268435456"},
		// Allocatable unknown: the file is left alone.
		{"1.27", .9, Node{PageSize: 4096}, "128Mi/-", "memory.min=134217728"},
	} {
		t.Run(fmt.Sprintf("%s factor %v page %d %s", tc.version, tc.factor, tc.node.PageSize, tc.container), func(t *testing.T) {
			got := policy(t, tc.version, tc.factor, tc.node).Containers(pod(corev1.PodQOSBurstable, container("c", tc.container)))
			if len(got) != 1 {
				t.Fatalf("got %d containers", len(got))
			}
			if got[0].Values.String() != tc.want {
				t.Errorf("got  %s\nwant %s", got[0].Values, tc.want)
			}
			if got[0].Reason[memory.High] == "" || got[0].Reason[memory.Min] == "" {
				t.Errorf("a value has no reason: %v", got[0].Reason)
			}
		})
	}
}

func TestPod(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	sidecar := container("sidecar", "30Mi/30Mi")
	sidecar.RestartPolicy = &always
	withInit := func(p *corev1.Pod, init ...corev1.Container) *corev1.Pod {
		p.Spec.InitContainers = init
		return p
	}
	withOverhead := func(p *corev1.Pod) *corev1.Pod {
		p.Spec.Overhead = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("10Mi")}
		return p
	}
	for _, tc := range []struct {
		name string
		pod  *corev1.Pod
		want string
	}{
		{"pod-level and overhead, not int64", withOverhead(&corev1.Pod{Spec: corev1.PodSpec{Resources: podLevel("", "", "1.5Gi", "2.5Gi")}, Status: corev1.PodStatus{QOSClass: corev1.PodQOSBurstable}}), "memory.min=1621098496 memory.max=2694840320"},
		{"one container", pod(corev1.PodQOSBurstable, container("a", "100Mi/-")), "memory.min=104857600"},
		{"two containers", pod(corev1.PodQOSBurstable, container("a", "100Mi/-"), container("b", "100Mi/-")), "memory.min=209715200"},
		{"limits everywhere", pod(corev1.PodQOSBurstable, container("a", "64Mi/128Mi"), container("b", "0/1Mi")), "memory.min=67108864 memory.max=135266304"},
		{"one without a limit", pod(corev1.PodQOSBurstable, container("a", "64Mi/128Mi"), container("b", "-/-")), "memory.min=67108864"},
		{"guaranteed", pod(corev1.PodQOSGuaranteed, container("a", "64Mi/64Mi")), "memory.min=67108864 memory.max=67108864"},
		{"best effort", pod(corev1.PodQOSBestEffort, container("a", "-/-")), "memory.min=0"},
		{"init peak", withInit(pod(corev1.PodQOSBurstable, container("a", "50Mi/-")), container("i", "80Mi/80Mi"), container("j", "10Mi/-")), "memory.min=83886080"},
		{"init below the sum", withInit(pod(corev1.PodQOSBurstable, container("a", "50Mi/60Mi")), container("i", "8Mi/8Mi")), "memory.min=52428800 memory.max=62914560"},
		{"init without a limit", withInit(pod(corev1.PodQOSBurstable, container("a", "50Mi/60Mi")), container("i", "8Mi/-")), "memory.min=52428800"},
		{"sidecar counts", withInit(pod(corev1.PodQOSBurstable, container("a", "50Mi/60Mi")), sidecar), "memory.min=83886080 memory.max=94371840"},
		{"sidecar before init", withInit(pod(corev1.PodQOSBurstable, container("a", "50Mi/60Mi")), sidecar, container("i", "70Mi/70Mi")), "memory.min=104857600 memory.max=104857600"},
		{"overhead", withOverhead(pod(corev1.PodQOSBurstable, container("a", "50Mi/60Mi"))), "memory.min=62914560 memory.max=73400320"},
		// The kubelet does this, although the class above it protects nothing.
		{"best effort with overhead", withOverhead(pod(corev1.PodQOSBestEffort, container("a", "-/-"))), "memory.min=10485760"},
		{"odd bytes are summed before they are floored", pod(corev1.PodQOSBurstable, container("a", "6000/6000"), container("b", "6000/6000")), "memory.min=8192 memory.max=8192"},
		{"larger than an int64 together", pod(corev1.PodQOSBurstable, container("a", "8E/8E"), container("b", "8E/8E")), "memory.min=max memory.max=max"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for range 2 { // planning changes nothing
				if got := policy(t, "1.27", 0, Node{Allocatable: gi32, PageSize: 4096}).Pod(tc.pod); got.Values.String() != tc.want {
					t.Errorf("got  %s\nwant %s", got.Values, tc.want)
				}
			}
		})
	}
}

func TestNode(t *testing.T) {
	g, b1, b2 := pod(corev1.PodQOSGuaranteed, container("a", "128Mi/128Mi")), pod(corev1.PodQOSBurstable, container("a", "128Mi/-")), pod(corev1.PodQOSBurstable, container("a", "256Mi/-"))
	best := pod(corev1.PodQOSBestEffort, container("a", "-/-"))
	best.Spec.Overhead = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("10Mi")}
	done, failed, deleted := b1.DeepCopy(), g.DeepCopy(), b1.DeepCopy()
	done.Status.Phase, failed.Status.Phase = corev1.PodSucceeded, corev1.PodFailed
	deleted.DeletionTimestamp = &metav1.Time{}
	for _, tc := range []struct {
		name                string
		pods                []corev1.Pod
		kubepods, burstable string
	}{
		{"upstream row", []corev1.Pod{*g, *b1, *b2}, "536870912", "402653184"},
		{"empty: 0 is written, upstream leaves what was there", nil, "0", "0"},
		{"guaranteed only", []corev1.Pod{*g}, "134217728", "0"},
		{"best effort does not count, nor does its overhead", []corev1.Pod{*best, *b1}, "134217728", "134217728"},
		{"done pods do not count", []corev1.Pod{*done, *failed, *b2}, "268435456", "268435456"},
		{"deleted pods count until they are gone", []corev1.Pod{*deleted}, "134217728", "134217728"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := policy(t, "1.27", 0, Node{Allocatable: gi32, PageSize: 4096}).Node(tc.pods)
			if len(got) != 2 || got[0].Level != LevelNode || got[1].Level != LevelQOS || got[1].QOSClass != corev1.PodQOSBurstable {
				t.Fatalf("got %+v", got)
			}
			want := []string{"memory.min=" + tc.kubepods, "memory.min=" + tc.burstable}
			if diff := cmp.Diff(want, []string{got[0].Values.String(), got[1].Values.String()}); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestPlanFor(t *testing.T) {
	p := pod("", container("app", "64Mi/128Mi"))
	p.Spec.InitContainers = []corev1.Container{container("init", "-/-")}
	p.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "debug"}}}
	done := p.DeepCopy()
	done.Name, done.Status.Phase = "done", corev1.PodFailed

	plan := policy(t, "1.27", 0, Node{Allocatable: gi32, PageSize: 4096}).PlanFor([]corev1.Pod{*done, *p})
	var got []string
	for _, c := range plan.Cgroups {
		got = append(got, fmt.Sprintf("%s %s %s/%s %s", c.Level, c.QOSClass, c.Pod, c.Container, c.Values))
	}
	want := []string{
		"node  / memory.min=67108864",
		"qos Burstable / memory.min=67108864",
		"pod Burstable p/ memory.min=67108864",
		"container Burstable p/init memory.min=0 memory.high=max",
		"container Burstable p/app memory.min=67108864 memory.high=127504384 memory.max=134217728",
		"container Burstable p/debug memory.min=0 memory.high=max",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// Every release that can be configured computes something, and the releases of
// one formula agree.
func TestEveryEmulationVersion(t *testing.T) {
	for _, v := range config.EmulationVersions() {
		got := policy(t, string(v), .5, Node{Allocatable: gi32, PageSize: 1}).Containers(pod("", container("c", "100/1000")))[0].Values[memory.High]
		want := memory.Value(550)
		if !v.AtLeast(27) {
			want = 500
		}
		if got != want {
			t.Errorf("%s: memory.high = %s, want %s", v, got, want)
		}
	}
}
