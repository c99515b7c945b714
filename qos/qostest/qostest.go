// Package qostest makes random pods and rules for property tests. Each pod is one
// that an API server would take, as far as memory and cpu go.
package qostest

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"pgregory.net/rapid"

	"github.com/memqos/memqos/config"
)

// Pods makes pods of one node, their names and uids all different.
func Pods() *rapid.Generator[[]corev1.Pod] {
	return rapid.Custom(func(t *rapid.T) []corev1.Pod {
		pods := make([]corev1.Pod, rapid.IntRange(0, 6).Draw(t, "pods"))
		for i := range pods {
			pods[i] = pod(t)
			pods[i].Name, pods[i].UID = fmt.Sprintf("pod-%d", i), types.UID(fmt.Sprintf("uid-%d", i))
		}
		return pods
	})
}

// Rules makes rules of which some match some of the Pods, for a release with or
// without a memoryReservationPolicy.
func Rules(reservation bool) *rapid.Generator[[]config.Rule] {
	return rapid.Custom(func(t *rapid.T) []config.Rule {
		rules := make([]config.Rule, rapid.IntRange(0, 3).Draw(t, "rules"))
		for i := range rules {
			r := &rules[i]
			r.Name, r.Match = fmt.Sprintf("rule-%d", i), &config.Match{}
			switch rapid.IntRange(0, 4).Draw(t, "match") {
			case 0:
				r.Match.Namespaces = []string{"team-*", "kube-system"}
			case 1:
				r.Match.PodSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}
			case 2:
				r.Match.QOSClasses = []corev1.PodQOSClass{corev1.PodQOSBurstable}
			case 3:
				r.Match.PriorityClassNames = []string{"low"}
			}
			switch rapid.IntRange(0, 4).Draw(t, "effect") {
			case 0:
				r.Exclude = true
			case 1:
				r.MemoryThrottlingFactor = new(rapid.Float64Range(0.001, 1).Draw(t, "rule factor"))
			case 2:
				r.MemoryHigh = config.Disabled
			case 3:
				if reservation {
					r.MemoryReservationPolicy = rapid.SampledFrom([]config.MemoryReservationPolicy{config.TieredReservation, config.NoReservation}).Draw(t, "rule policy")
				}
			}
		}
		return rules
	})
}

func pod(t *rapid.T) corev1.Pod {
	p := corev1.Pod{}
	p.Namespace = rapid.SampledFrom([]string{"default", "kube-system", "team-a"}).Draw(t, "namespace")
	p.Spec.PriorityClassName = rapid.SampledFrom([]string{"", "low", "system-node-critical"}).Draw(t, "priority")
	p.Labels = map[string]string{"app": rapid.SampledFrom([]string{"web", "db"}).Draw(t, "app")}
	if rapid.IntRange(0, 2).Draw(t, "annotated") == 0 {
		p.Annotations = rapid.SampledFrom([]map[string]string{
			{"memqos.io/exclude": "true"},
			{"memqos.io/memory-throttling-factor": "0.5"},
			{"memqos.io/memory-high": "disabled"},
			{"memqos.io/keep": "memory.high,memory.max"},
			{"memqos.io/exclude": "perhaps", "memqos.io/unknown": ""},
		}).Draw(t, "annotations")
	}
	p.Status.Phase = rapid.SampledFrom([]corev1.PodPhase{"", corev1.PodPending, corev1.PodRunning, corev1.PodSucceeded, corev1.PodFailed}).Draw(t, "phase")
	always := corev1.ContainerRestartPolicyAlways
	var statuses, initStatuses []corev1.ContainerStatus
	for i := range rapid.IntRange(0, 3).Draw(t, "init containers") {
		c, s := container(t, fmt.Sprintf("init-%d", i))
		if rapid.Bool().Draw(t, "sidecar") {
			c.RestartPolicy = &always
		}
		p.Spec.InitContainers, initStatuses = append(p.Spec.InitContainers, c), append(initStatuses, s)
	}
	for i := range rapid.IntRange(1, 4).Draw(t, "containers") {
		c, s := container(t, fmt.Sprintf("app-%d", i))
		p.Spec.Containers, statuses = append(p.Spec.Containers, c), append(statuses, s)
	}
	p.Status.InitContainerStatuses, p.Status.ContainerStatuses = initStatuses, statuses
	guaranteed := rapid.IntRange(0, 3).Draw(t, "Guaranteed") == 0
	if guaranteed {
		guarantee(t, &p)
	}
	if rapid.Bool().Draw(t, "ephemeral") {
		p.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "debug"}}}
	}
	if rapid.Bool().Draw(t, "overhead") {
		p.Spec.Overhead = corev1.ResourceList{corev1.ResourceMemory: quantity(size(t, "overhead bytes"))}
	}
	if !guaranteed && rapid.Bool().Draw(t, "pod-level") {
		p.Spec.Resources = podLevel(t, &p)
		if rapid.Bool().Draw(t, "pod-level status") {
			r := requirements(t)
			p.Status.Resources = &r
		}
	}
	return p
}

// guarantee makes a pod Guaranteed, which chance seldom does.
func guarantee(t *rapid.T, p *corev1.Pod) {
	for _, containers := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range containers {
			n := 1 + size(t, "guaranteed")
			list := set(set(nil, corev1.ResourceCPU, n), corev1.ResourceMemory, n)
			containers[i].Resources = corev1.ResourceRequirements{Requests: list, Limits: list.DeepCopy()}
		}
	}
}

// container makes a container and its status. What the status reports need not
// be what the spec asks for: a resize may be waiting.
func container(t *rapid.T, name string) (corev1.Container, corev1.ContainerStatus) {
	c := corev1.Container{Name: name, Resources: requirements(t)}
	s := corev1.ContainerStatus{Name: name, ContainerID: "containerd://" + strings.Repeat("0", 63) + name[len(name)-1:]}
	switch rapid.IntRange(0, 3).Draw(t, "status") {
	case 0:
		s.Resources = c.Resources.DeepCopy()
	case 1:
		r := requirements(t)
		s.Resources = &r
	}
	return c, s
}

func requirements(t *rapid.T) corev1.ResourceRequirements {
	var r corev1.ResourceRequirements
	for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
		request := size(t, "request")
		limit := request + size(t, "above the request")
		if rapid.Bool().Draw(t, "limit is the request") {
			limit = request
		}
		if rapid.Bool().Draw(t, "has a request") {
			r.Requests = set(r.Requests, name, request)
		}
		if rapid.Bool().Draw(t, "has a limit") {
			r.Limits = set(r.Limits, name, limit)
		}
	}
	return r
}

// podLevel makes resources that the API server allows over the containers': the
// request is not below the sum of theirs, the limit not below the request nor
// any container's limit.
func podLevel(t *rapid.T, p *corev1.Pod) *corev1.ResourceRequirements {
	r := &corev1.ResourceRequirements{}
	for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
		var request resource.Quantity
		limit := quantity(0)
		for _, containers := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
			for i := range containers {
				cr, cl := containers[i].Resources.Requests[name], containers[i].Resources.Limits[name]
				if cr.IsZero() {
					cr = cl // the API server's default
				}
				request.Add(cr)
				if cl.Cmp(limit) > 0 {
					limit = cl
				}
			}
		}
		request.Add(quantity(size(t, "pod-level request above the sum")))
		if request.Cmp(limit) > 0 {
			limit = request.DeepCopy()
		}
		if rapid.Bool().Draw(t, "pod-level limit above the request") {
			limit.Add(quantity(size(t, "by")))
		}
		if rapid.Bool().Draw(t, "has a pod-level request") {
			if r.Requests == nil {
				r.Requests = corev1.ResourceList{}
			}
			r.Requests[name] = request
		}
		if rapid.Bool().Draw(t, "has a pod-level limit") {
			if r.Limits == nil {
				r.Limits = corev1.ResourceList{}
			}
			r.Limits[name] = limit
		}
	}
	return r
}

func set(list corev1.ResourceList, name corev1.ResourceName, n int64) corev1.ResourceList {
	if list == nil {
		list = corev1.ResourceList{}
	}
	list[name] = quantity(n)
	return list
}

func quantity(n int64) resource.Quantity { return *resource.NewQuantity(n, resource.BinarySI) }

// size is a number of bytes of the kinds that have their own way to go wrong:
// none, less than a page, odd, ordinary, larger than any node.
func size(t *rapid.T, label string) int64 {
	return rapid.OneOf(
		rapid.SampledFrom([]int64{0, 1, 4095, 4096, 4097, 64 << 20, 1 << 30, 1 << 61}),
		rapid.Int64Range(0, 1<<28),
		rapid.Int64Range(0, 1<<40),
	).Draw(t, label)
}
