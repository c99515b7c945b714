package qos

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/memqos/memqos/config"
	"github.com/memqos/memqos/memory"
)

func withPodLevel(p *corev1.Pod, cpuRequest, cpuLimit, memRequest, memLimit string) *corev1.Pod {
	r := requirements(cpuRequest, cpuLimit, memRequest, memLimit)
	p.Spec.Resources = &r
	return p
}

func overheadOf(p *corev1.Pod, text string) *corev1.Pod {
	p.Spec.Overhead = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse(text)}
	return p
}

// full makes a container with cpu too: "request/limit" of each.
func full(name, cpuRequest, cpuLimit, memRequest, memLimit string) corev1.Container {
	return corev1.Container{Name: name, Resources: requirements(cpuRequest, cpuLimit, memRequest, memLimit)}
}

func values(cgroups []Cgroup) []string {
	var out []string
	for _, c := range cgroups {
		out = append(out, c.Values.String())
	}
	return out
}

func reasoned(t *testing.T, cgroups ...Cgroup) {
	t.Helper()
	for _, c := range cgroups {
		for file := range c.Values {
			if c.Reason[file] == "" {
				t.Errorf("%s %s%s: %s has no reason", c.Level, c.Pod, c.Container, file)
			}
		}
	}
}

// The rows of 1.36.3 and 1.37.1 that concern containers. Each value is what
// upstream's test expects, with what the kernel holds where the kubelet writes
// nothing: 0, and "max" for memory.high.
func TestContainerTieredUpstreamRows(t *testing.T) {
	shared := func() *corev1.Pod { // TestContainerMemoryHighSkippedWithPodLevelResources
		return withPodLevel(pod("", full("c1-with-limit", "100m", "200m", "256Mi", "512Mi"), full("c2-no-limit", "100m", "", "256Mi", "")), "", "", "", "1Gi")
	}
	for _, tc := range []struct {
		source  string // upstream's test, and the row
		version string
		reserve config.MemoryReservationPolicy
		pod     *corev1.Pod
		want    []string
	}{
		// kuberuntime_container_linux_test.go, TestGenerateContainerConfigWithMemoryQoSEnforced.
		{"Burstable pod with limits", "1.37", "", pod("", container("foo", "128Mi/256Mi")),
			[]string{"memory.min=0 memory.low=134217728 memory.high=255012864 memory.max=268435456"}},
		{"Burstable pod without limits", "1.37", "", pod("", container("foo", "128Mi/-")),
			[]string{"memory.min=0 memory.low=134217728 memory.high=30937186304"}},
		{"BestEffort pod", "1.37", "", pod("", container("foo", "-/-")),
			[]string{"memory.min=0 memory.low=0 memory.high=30923763712"}},
		{"Guaranteed pod", "1.37", "", pod("", full("foo", "1", "1", "256Mi", "256Mi")),
			[]string{"memory.min=268435456 memory.low=0 memory.high=max memory.max=268435456"}},
		// Of the same name in 1.36.3.
		{"memory.low and memory.high of a burstable pod", "1.36", "", pod("", container("foo", "128Mi/256Mi")),
			[]string{"memory.min=0 memory.low=134217728 memory.high=255012864 memory.max=268435456"}},
		{"the same without limits", "1.36", "", pod("", container("foo", "128Mi/-")),
			[]string{"memory.min=0 memory.low=134217728 memory.high=30937186304"}},
		// No row upstream: 1.36 has the rule of 1.27 for a container with neither.
		{"BestEffort pod in 1.36", "1.36", "", pod("", container("foo", "-/-")),
			[]string{"memory.min=0 memory.low=0 memory.high=max"}},
		// TestGenerateContainerConfigMemoryQoSPolicyNone.
		{"policy None", "1.37", config.NoReservation, pod("", container("foo", "128Mi/256Mi")),
			[]string{"memory.min=0 memory.low=0 memory.high=255012864 memory.max=268435456"}},
		{"policy None in 1.36", "1.36", config.NoReservation, pod("", full("foo", "1", "1", "256Mi", "256Mi")),
			[]string{"memory.min=0 memory.low=0 memory.high=max memory.max=268435456"}},
		// TestContainerMemoryHighSkippedWithPodLevelResources.
		{"own limit, and skipped for the pod's", "1.37", config.NoReservation, shared(), []string{
			"memory.min=0 memory.low=0 memory.high=510025728 memory.max=536870912",
			"memory.min=0 memory.low=0 memory.high=max memory.max=1073741824"}},
		{"cpu-only pod-level resources", "1.37", config.NoReservation, withPodLevel(pod("", full("c1", "100m", "", "256Mi", "")), "", "2", "", ""),
			[]string{"memory.min=0 memory.low=0 memory.high=30950604800"}},
		{"guaranteed pod with container req!=limit", "1.37", config.NoReservation, withPodLevel(pod("", container("c1", "256Mi/512Mi")), "1", "1", "1Gi", "1Gi"),
			[]string{"memory.min=0 memory.low=0 memory.high=510025728 memory.max=536870912"}},
		{"burstable pod with container memory req==limit", "1.37", config.NoReservation, pod("", container("c1", "256Mi/256Mi")),
			[]string{"memory.min=0 memory.low=0 memory.high=max memory.max=268435456"}},
		// No rows upstream: the class of the protection is the pod's, and before 1.37
		// the container's own, absent limit decides about memory.high, so that it is
		// above memory.max.
		{"guaranteed by pod-level resources", "1.37", "", withPodLevel(pod("", container("c1", "256Mi/512Mi")), "1", "1", "1Gi", "1Gi"),
			[]string{"memory.min=268435456 memory.low=0 memory.high=510025728 memory.max=536870912"}},
		{"pod-level limit in 1.36", "1.36", "", shared(), []string{
			"memory.min=0 memory.low=268435456 memory.high=510025728 memory.max=536870912",
			"memory.min=0 memory.low=268435456 memory.high=30950604800 memory.max=1073741824"}},
		{"pod-level limit in 1.35", "1.35", "", shared(), []string{
			"memory.min=268435456 memory.high=510025728 memory.max=536870912",
			"memory.min=268435456 memory.high=30950604800 memory.max=1073741824"}},
		// test/e2e_node/memory_qos_test.go.
		{"Burstable 256Mi/512Mi", "1.37", "", pod("", container("test", "256Mi/512Mi")),
			[]string{"memory.min=0 memory.low=268435456 memory.high=510025728 memory.max=536870912"}},
		{"low-request", "1.37", config.NoReservation, pod("", full("test", "50m", "100m", "64Mi", "512Mi")),
			[]string{"memory.min=0 memory.low=0 memory.high=489893888 memory.max=536870912"}},
		{"high-request", "1.37", config.NoReservation, pod("", full("test", "50m", "100m", "480Mi", "512Mi")),
			[]string{"memory.min=0 memory.low=0 memory.high=533512192 memory.max=536870912"}},
		{"equal-req-limit", "1.37", config.NoReservation, pod("", full("test", "50m", "100m", "512Mi", "512Mi")),
			[]string{"memory.min=0 memory.low=0 memory.high=max memory.max=536870912"}},
		{"memory req == limit but CPU differs", "1.37", "", pod("", full("test", "100m", "200m", "128Mi", "128Mi")),
			[]string{"memory.min=0 memory.low=134217728 memory.high=max memory.max=134217728"}},
		{"resized to 160Mi/320Mi", "1.37", config.NoReservation, pod("", full("test", "50m", "100m", "160Mi", "320Mi")),
			[]string{"memory.min=0 memory.low=0 memory.high=318767104 memory.max=335544320"}},
	} {
		t.Run(tc.version+" "+tc.source, func(t *testing.T) {
			got := policyReserving(t, tc.version, tc.reserve, .9, Node{Allocatable: gi32, PageSize: 4096}).Containers(tc.pod)
			if diff := cmp.Diff(tc.want, values(got)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			reasoned(t, got...)
		})
	}
}

// memory.high = limit with a factor of 1 (test/e2e_node/memory_qos_test.go).
func TestFactorOne(t *testing.T) {
	got := policyReserving(t, "1.37", "", 1, Node{Allocatable: gi32, PageSize: 4096}).Containers(pod("", container("c", "256Mi/512Mi")))
	if high := got[0].Values[memory.High]; high != 512<<20 {
		t.Errorf("got %s, want the limit", high)
	}
}

func TestPodTieredUpstreamRows(t *testing.T) {
	for _, tc := range []struct {
		source  string
		version string
		reserve config.MemoryReservationPolicy
		pod     *corev1.Pod
		want    string
	}{
		// helpers_linux_test.go, TestResourceConfigForPodWithEnforceMemoryQoS; the
		// rows that differ in cpu alone are left out.
		{"besteffort", "1.36", "", pod("", full("c", "", "", "", "")), "memory.min=0 memory.low=0"},
		{"burstable-no-limits", "1.36", "", pod("", full("c", "100m", "", "100Mi", "")), "memory.min=0 memory.low=104857600"},
		{"burstable-with-limits", "1.36", "", pod("", full("c", "100m", "200m", "100Mi", "200Mi")), "memory.min=0 memory.low=104857600 memory.max=209715200"},
		{"burstable-partial-limits", "1.36", "", pod("", full("c", "100m", "200m", "100Mi", "200Mi"), full("d", "100m", "", "100Mi", "")), "memory.min=0 memory.low=209715200"},
		{"guaranteed", "1.36", "", pod("", full("c", "100m", "100m", "100Mi", "100Mi")), "memory.min=104857600 memory.low=0 memory.max=104857600"},
		{"guaranteed", "1.37", "", pod("", full("c", "100m", "100m", "100Mi", "100Mi")), "memory.min=104857600 memory.low=0 memory.high=max memory.max=104857600"},
		// TestApplyPodLevelMemoryHigh.
		{"cpu-only pod-level resources", "1.37", "", withPodLevel(pod("", full("c", "100m", "200m", "100Mi", "")), "", "2", "", ""), "memory.min=0 memory.low=104857600 memory.high=max"},
		{"overhead is included", "1.37", "", overheadOf(withPodLevel(pod("", full("c", "1", "1", "128Mi", "256Mi")), "1", "1", "128Mi", "256Mi"), "64Mi"), "memory.min=0 memory.low=201326592 memory.high=322121728 memory.max=335544320"},
		{"without overhead", "1.37", "", withPodLevel(pod("", full("c", "1", "1", "128Mi", "256Mi")), "1", "1", "128Mi", "256Mi"), "memory.min=0 memory.low=134217728 memory.high=255012864 memory.max=268435456"},
		{"mixed declared/undeclared memory limits", "1.37", "", withPodLevel(pod("", full("c", "100m", "200m", "100Mi", "200Mi"), full("d", "100m", "", "100Mi", "")), "", "2", "", ""), "memory.min=0 memory.low=209715200 memory.high=max"},
		// No rows upstream.
		{"cpu-only pod-level resources over containers with limits", "1.37", "", withPodLevel(pod("", full("c", "100m", "200m", "100Mi", "200Mi")), "", "2", "", ""), "memory.min=0 memory.low=104857600 memory.high=199229440 memory.max=209715200"},
		{"guaranteed by pod-level resources", "1.37", "", withPodLevel(pod("", container("c", "-/-")), "1", "1", "1Gi", "1Gi"), "memory.min=1073741824 memory.low=0 memory.high=max memory.max=1073741824"},
		{"no memory.high of pods in 1.36", "1.36", "", withPodLevel(pod("", container("c", "-/-")), "1", "1", "512Mi", "1Gi"), "memory.min=0 memory.low=536870912 memory.max=1073741824"},
		{"best effort with overhead", "1.37", "", overheadOf(pod("", container("c", "-/-")), "10Mi"), "memory.min=0 memory.low=10485760 memory.high=max"},
		// test/e2e_node/memory_qos_test.go.
		{"sum over containers", "1.37", "", pod("", container("container-1", "128Mi/512Mi"), container("container-2", "256Mi/512Mi")), "memory.min=0 memory.low=402653184 memory.high=max memory.max=1073741824"},
		{"not on the pod-level cgroup", "1.37", config.NoReservation, pod("", container("test", "128Mi/256Mi")), "memory.min=0 memory.low=0 memory.high=max memory.max=268435456"},
		{"policy None", "1.36", config.NoReservation, pod("", container("test", "256Mi/512Mi")), "memory.min=0 memory.low=0 memory.max=536870912"},
	} {
		t.Run(tc.version+" "+tc.source, func(t *testing.T) {
			got := policyReserving(t, tc.version, tc.reserve, .9, Node{Allocatable: gi32, PageSize: 4096}).Pod(tc.pod)
			if got.Values.String() != tc.want {
				t.Errorf("got  %s\nwant %s", got.Values, tc.want)
			}
			reasoned(t, got)
		})
	}
}

func TestNodeTieredUpstreamRows(t *testing.T) {
	active := []corev1.Pod{ // activeTestPods
		*pod("", full("foo", "1", "1", "128Mi", "128Mi")),
		*pod("", full("foo", "1", "2", "128Mi", "256Mi")),
		*pod("", full("foo", "2", "", "256Mi", "")),
	}
	podLevel := []corev1.Pod{active[0], *withPodLevel(pod("", full("foo", "1", "2", "128Mi", "256Mi")), "", "", "512Mi", "")}
	for _, tc := range []struct {
		source              string
		version             string
		reserve             config.MemoryReservationPolicy
		pods                []corev1.Pod
		kubepods, burstable string
	}{
		// qos_container_manager_linux_test.go, TestQoSContainerCgroup.
		{"writes aggregated memory min", "1.37", "", active, "memory.min=536870912 memory.low=402653184", "memory.min=0 memory.low=402653184"},
		{"writes zero for best effort pod", "1.37", "", []corev1.Pod{*pod("", container("foo", "-/-"))}, "memory.min=0 memory.low=0", "memory.min=0 memory.low=0"},
		{"writes zero for burstable pod without memory request", "1.37", "", []corev1.Pod{*pod("", full("foo", "1", "", "", ""))}, "memory.min=0 memory.low=0", "memory.min=0 memory.low=0"},
		{"clears stale memory min when all pods removed", "1.37", "", nil, "memory.min=0 memory.low=0", "memory.min=0 memory.low=0"},
		{"pod-level resources", "1.37", "", podLevel, "memory.min=671088640 memory.low=536870912", "memory.min=0 memory.low=536870912"},
		// The same in 1.36.3, whose kubepods has no memory.low.
		{"writes aggregated memory min", "1.36", "", active, "memory.min=536870912 memory.low=0", "memory.min=0 memory.low=402653184"},
		// TestQoSContainerCgroupWithMemoryReservationPolicyNone.
		{"policy None", "1.36", config.NoReservation, active, "memory.min=0 memory.low=0", "memory.min=0 memory.low=0"},
		{"policy None", "1.37", config.NoReservation, active, "memory.min=0 memory.low=0", "memory.min=0 memory.low=0"},
		// memory.low is nobody's before.
		{"1.35", "1.35", "", active, "memory.min=536870912", "memory.min=402653184"},
	} {
		t.Run(tc.version+" "+tc.source, func(t *testing.T) {
			got := policyReserving(t, tc.version, tc.reserve, 0, Node{Allocatable: gi32, PageSize: 4096}).Node(tc.pods)
			if diff := cmp.Diff([]string{tc.kubepods, tc.burstable}, values(got)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			reasoned(t, got...)
		})
	}
}

// What a release manages at which level does not depend on the pod: a value that
// another configuration of the release left is always replaced.
func TestManagedFilesAreTheReleases(t *testing.T) {
	pods := []*corev1.Pod{
		pod("", container("c", "-/-")), pod("", container("c", "1Mi/-")), pod("", full("c", "1", "1", "1Mi", "1Mi")),
		withPodLevel(pod("", container("c", "-/-")), "1", "1", "1Mi", "1Mi"), withPodLevel(pod("", container("c", "-/-")), "1", "1", "1Mi", "2Mi"),
	}
	for _, v := range config.EmulationVersions() {
		for _, reserve := range []config.MemoryReservationPolicy{config.TieredReservation, config.NoReservation} {
			if !v.AtLeast(36) {
				reserve = ""
			}
			for i, pd := range pods {
				p := policyReserving(t, string(v), reserve, 0, Node{Allocatable: gi32, PageSize: 4096})
				for _, c := range p.PlanFor([]corev1.Pod{*pd}).Cgroups {
					want := map[memory.File]bool{memory.Min: true, memory.Low: v.AtLeast(36), memory.High: c.Level == LevelContainer || c.Level == LevelPod && v.AtLeast(37)}
					for file, managed := range want {
						if _, ok := c.Values[file]; ok != managed {
							t.Errorf("%s %q pod %d: %s of the %s is managed: %v, want %v", v, reserve, i, file, c.Level, ok, managed)
						}
					}
				}
			}
		}
	}
}
