package qos

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

func requirements(cpuRequest, cpuLimit, memRequest, memLimit string) corev1.ResourceRequirements {
	r := corev1.ResourceRequirements{Requests: corev1.ResourceList{}, Limits: corev1.ResourceList{}}
	for _, x := range []struct {
		list corev1.ResourceList
		name corev1.ResourceName
		text string
	}{
		{r.Requests, corev1.ResourceCPU, cpuRequest}, {r.Limits, corev1.ResourceCPU, cpuLimit},
		{r.Requests, corev1.ResourceMemory, memRequest}, {r.Limits, corev1.ResourceMemory, memLimit},
	} {
		if x.text != "" {
			x.list[x.name] = resource.MustParse(x.text)
		}
	}
	return r
}

func TestClass(t *testing.T) {
	full, none := requirements("1", "1", "1Gi", "1Gi"), requirements("", "", "", "")
	for _, tc := range []struct {
		name       string
		containers []corev1.ResourceRequirements
		want       corev1.PodQOSClass
	}{
		{"nothing", []corev1.ResourceRequirements{none}, corev1.PodQOSBestEffort},
		{"zeroes", []corev1.ResourceRequirements{requirements("0", "0", "0", "0")}, corev1.PodQOSBestEffort},
		{"all", []corev1.ResourceRequirements{full, full}, corev1.PodQOSGuaranteed},
		{"different ways to write it", []corev1.ResourceRequirements{requirements("1000m", "1", "1024Mi", "1Gi")}, corev1.PodQOSGuaranteed},
		{"one container without", []corev1.ResourceRequirements{full, none}, corev1.PodQOSBurstable},
		{"memory only", []corev1.ResourceRequirements{requirements("", "", "1Gi", "1Gi")}, corev1.PodQOSBurstable},
		{"request below limit", []corev1.ResourceRequirements{requirements("1", "1", "1Gi", "2Gi")}, corev1.PodQOSBurstable},
		{"request only", []corev1.ResourceRequirements{requirements("", "", "1Gi", "")}, corev1.PodQOSBurstable},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := &corev1.Pod{}
			for i, r := range tc.containers {
				if i == 0 { // init containers count too
					p.Spec.InitContainers = append(p.Spec.InitContainers, corev1.Container{Resources: r})
				}
				p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Resources: r})
			}
			if got := Class(p); got != tc.want {
				t.Errorf("got %s, want %s", got, tc.want)
			}
			p.Status.QOSClass = "FromTheServer"
			if got := Class(p); got != "FromTheServer" {
				t.Errorf("got %s, want what the API server says", got)
			}
		})
	}
	p := &corev1.Pod{Spec: corev1.PodSpec{Resources: &full, Containers: []corev1.Container{{Resources: none}}}}
	if got := Class(p); got != corev1.PodQOSGuaranteed {
		t.Errorf("pod-level resources: got %s, want Guaranteed", got)
	}
}

func TestSetDefaults(t *testing.T) {
	p := &corev1.Pod{Spec: corev1.PodSpec{
		InitContainers: []corev1.Container{{Resources: corev1.ResourceRequirements{Limits: requirements("", "", "", "8Mi").Limits}}},
		Containers: []corev1.Container{
			{Resources: requirements("", "1", "", "16Mi")},
			{Resources: requirements("", "1", "0", "16Mi")},
			{Resources: requirements("", "", "4Mi", "")},
		},
	}}
	SetDefaults(p)
	var got []string
	for _, c := range append(p.Spec.InitContainers, p.Spec.Containers...) {
		got = append(got, c.Resources.Requests.Memory().String()+" "+c.Resources.Requests.Cpu().String())
	}
	if diff := cmp.Diff([]string{"8Mi 0", "16Mi 1", "0 1", "4Mi 0"}, got); diff != "" {
		t.Errorf("memory and cpu requests (-want +got):\n%s", diff)
	}
}

// The rows of strategy_test.go of 1.37.1, TestApplyPodLevelResourceDefaults, that
// are not about hugepages.
func TestSetDefaultsPodLevel(t *testing.T) {
	for _, tc := range []struct {
		name       string
		containers []corev1.ResourceRequirements
		podLevel   *corev1.ResourceRequirements
		want       string // requests, limits: cpu memory
	}{
		{"nil", []corev1.ResourceRequirements{requirements("100m", "200m", "128Mi", "256Mi")}, nil, ""},
		{"empty", []corev1.ResourceRequirements{requirements("100m", "200m", "128Mi", "256Mi")}, &corev1.ResourceRequirements{}, "- - / - -"},
		{"memory request, container limits of cpu", []corev1.ResourceRequirements{requirements("100m", "100m", "128Mi", ""), requirements("200m", "200m", "128Mi", "")}, podLevel("", "", "256Mi", ""), "300m 256Mi / 300m -"},
		{"memory request, container limits of memory", []corev1.ResourceRequirements{requirements("", "", "128Mi", "128Mi"), requirements("", "", "128Mi", "128Mi")}, podLevel("", "", "256Mi", ""), "- 256Mi / - 256Mi"},
		{"cpu request", []corev1.ResourceRequirements{requirements("", "", "128Mi", "256Mi"), requirements("", "", "128Mi", "256Mi")}, podLevel("200m", "", "", ""), "200m 256Mi / - 512Mi"},
		{"limits only in containers", []corev1.ResourceRequirements{requirements("", "100m", "", "128Mi"), requirements("", "100m", "", "128Mi")}, podLevel("200m", "", "256Mi", ""), "200m 256Mi / 200m 256Mi"},
		{"a container without limits", []corev1.ResourceRequirements{requirements("50m", "100m", "64Mi", "128Mi"), requirements("50m", "", "64Mi", "")}, podLevel("200m", "", "256Mi", ""), "200m 256Mi / - -"},
		{"request above the containers' limits", []corev1.ResourceRequirements{requirements("", "", "64Mi", "128Mi")}, podLevel("", "", "1Gi", ""), "- 1Gi / - 1Gi"},
		{"limit only, containers ask for nothing", []corev1.ResourceRequirements{{}}, podLevel("", "", "", "1Gi"), "- 1Gi / - 1Gi"},
		{"limit only, containers ask", []corev1.ResourceRequirements{requirements("", "", "64Mi", "")}, podLevel("", "", "", "1Gi"), "- 64Mi / - 1Gi"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := &corev1.Pod{Spec: corev1.PodSpec{Resources: tc.podLevel}}
			for _, r := range tc.containers {
				p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Resources: r})
			}
			stored := p.DeepCopy()
			stored.Status.QOSClass = corev1.PodQOSBurstable
			before := stored.Spec.Resources.DeepCopy()
			for range 2 { // a second time changes nothing
				SetDefaults(p)
				if got := show(p.Spec.Resources); got != tc.want {
					t.Errorf("got %q, want %q", got, tc.want)
				}
			}
			SetDefaults(stored)
			if diff := cmp.Diff(before, stored.Spec.Resources); diff != "" {
				t.Errorf("a pod from an API server was changed:\n%s", diff)
			}
		})
	}
}

func podLevel(cpuRequest, cpuLimit, memRequest, memLimit string) *corev1.ResourceRequirements {
	r := requirements(cpuRequest, cpuLimit, memRequest, memLimit)
	return &r
}

func show(r *corev1.ResourceRequirements) string {
	if r == nil {
		return ""
	}
	text := func(list corev1.ResourceList, name corev1.ResourceName) string {
		if q, ok := list[name]; ok {
			return q.String()
		}
		return "-"
	}
	return text(r.Requests, corev1.ResourceCPU) + " " + text(r.Requests, corev1.ResourceMemory) + " / " +
		text(r.Limits, corev1.ResourceCPU) + " " + text(r.Limits, corev1.ResourceMemory)
}
