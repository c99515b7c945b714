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
