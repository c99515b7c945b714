package qos

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	resourcehelper "k8s.io/component-helpers/resource"
	"pgregory.net/rapid"

	"github.com/memqos/memqos/config"
	"github.com/memqos/memqos/memory"
	"github.com/memqos/memqos/qos/qostest"
)

func anyPolicy(t *rapid.T) Policy {
	c := &config.MemoryQoSConfiguration{EmulationVersion: rapid.SampledFrom([]config.EmulationVersion{"1.22", "1.27", "1.35", "1.36", "1.37"}).Draw(t, "version")}
	if c.EmulationVersion.HasReservationPolicy() {
		c.MemoryReservationPolicy = rapid.SampledFrom([]config.MemoryReservationPolicy{config.TieredReservation, config.NoReservation}).Draw(t, "policy")
	}
	factor := rapid.Float64Range(0.001, 1).Draw(t, "factor")
	c.MemoryThrottlingFactor = &factor
	c.Rules = qostest.Rules(c.EmulationVersion.HasReservationPolicy()).Draw(t, "rules")
	c.Rails.ReclaimMargin = new(rapid.SampledFrom([]float64{0, 0.05}).Draw(t, "margin"))
	config.SetDefaults(c)
	if errs := config.Validate(c); len(errs) > 0 {
		t.Fatal(errs.ToAggregate())
	}
	return NewPolicy(c, Node{
		Allocatable: rapid.SampledFrom([]int64{0, 1 << 30, 34359738367}).Draw(t, "allocatable"),
		Capacity:    rapid.SampledFrom([]int64{0, 0, 1 << 30}).Draw(t, "capacity"),
		PageSize:    rapid.SampledFrom([]int64{1, 4096, 65536}).Draw(t, "page"),
	})
}

func defaulted(pods []corev1.Pod) []corev1.Pod {
	for i := range pods {
		SetDefaults(&pods[i])
	}
	return pods
}

// No value could be refused or changed by the kernel, and none contradicts
// another of its cgroup.
func TestPlanIsSound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p, pods := anyPolicy(t), defaulted(qostest.Pods().Draw(t, "pods"))
		specs := map[string]*corev1.Pod{}
		for i := range pods {
			specs[pods[i].Name] = &pods[i]
		}
		for _, c := range p.PlanFor(pods).Cgroups {
			for file, v := range c.Values {
				if v < 0 || v != memory.Unlimited && int64(v)%p.node.PageSize != 0 {
					t.Errorf("%s %s/%s: %s=%d is no multiple of a page of %d", c.Level, c.Pod, c.Container, file, v, p.node.PageSize)
				}
				if c.Reason[file] == "" {
					t.Errorf("%s %s/%s: %s has no reason", c.Level, c.Pod, c.Container, file)
				}
			}
			limit, ok := c.Values[memory.Max]
			if !ok {
				continue
			}
			if c.Values[memory.Min] > limit || c.Values[memory.Low] > limit {
				t.Errorf("%s %s/%s: protects more than it allows: %s", c.Level, c.Pod, c.Container, c.Values)
			}
			if limit > 1<<53 {
				continue // the formula is in float64, as the kubelet's, and rounds
			}
			// Up to 1.36 a container that inherits the pod's limit has its memory.high
			// from node allocatable, as the kubelet computes it.
			exempt := c.Level == LevelContainer && inherits(specs[c.Pod], c.Container) && !p.release.podHigh
			if high := c.Values[memory.High]; high > limit && high != memory.Unlimited && !exempt {
				t.Errorf("%s %s/%s: memory.high above memory.max: %s", c.Level, c.Pod, c.Container, c.Values)
			}
		}
	})
}

// inherits reports whether a container has no memory limit of its own.
func inherits(pod *corev1.Pod, name string) bool {
	for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		if c.Name == name {
			return c.Resources.Limits.Memory().IsZero()
		}
	}
	return true
}

// Without a rail that binds, the sums at the top are those of the pods beneath,
// to the page that each pod is floored by.
func TestSumsAddUp(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p, pods := anyPolicy(t), defaulted(qostest.Pods().Draw(t, "pods"))
		p.node.Capacity, p.reclaimMargin = 0, 0
		for i := range pods { // sums follow the spec: no resize
			pods[i].Status.ContainerStatuses, pods[i].Status.InitContainerStatuses, pods[i].Status.Resources = nil, nil, nil
		}
		plan := p.PlanFor(pods)
		kubepods, burstable := plan.Cgroups[0].Values, plan.Cgroups[1].Values
		protects := memory.Min
		if p.release.tiered {
			protects = memory.Low
		}
		var sum, n memory.Value
		for _, c := range plan.Cgroups {
			if c.Level != LevelPod || c.QOSClass == corev1.PodQOSBestEffort {
				continue
			}
			if own := max(c.Values[memory.Min], c.Values[memory.Low]); own > kubepods[memory.Min] {
				t.Errorf("kubepods has %s, its pod %s %s", kubepods, c.Pod, c.Values)
			}
			if c.QOSClass == corev1.PodQOSBurstable && sum != memory.Unlimited {
				sum = memory.Value(add(int64(sum), int64(c.Values[protects])))
				n++
			}
		}
		page := memory.Value(p.node.PageSize)
		if got := burstable[protects]; got < p.bytes(int64(sum)) || got != memory.Unlimited && got > sum+n*page {
			t.Errorf("Burstable has %s, its %d pods together %s=%d", burstable, n, protects, sum)
		}
		if kubepods[memory.Min] < burstable[protects] || p.release.rootLow && kubepods[memory.Low] != burstable[memory.Low] {
			t.Errorf("kubepods has %s, Burstable %s", kubepods, burstable)
		}
	})
}

func TestPlanIsDeterministic(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p, pods := anyPolicy(t), defaulted(qostest.Pods().Draw(t, "pods"))
		before := make([]corev1.Pod, len(pods))
		for i := range pods {
			pods[i].DeepCopyInto(&before[i])
		}
		first := p.PlanFor(pods)
		if diff := cmp.Diff(first, p.PlanFor(pods)); diff != "" {
			t.Errorf("the second plan differs:\n%s", diff)
		}
		if diff := cmp.Diff(before, pods); diff != "" {
			t.Errorf("planning changed the pods:\n%s", diff)
		}
		slices.Reverse(pods)
		if diff := cmp.Diff(first.Cgroups[:2], p.Node(pods)); diff != "" {
			t.Errorf("the sums depend on the order of pods:\n%s", diff)
		}
	})
}

// What is summed up here without PodRequests and PodLimits is what they give.
func TestPlainPods(t *testing.T) {
	plainPods := 0
	rapid.Check(t, func(t *rapid.T) {
		for _, pod := range qostest.Pods().Draw(t, "pods") {
			pod.Spec.Overhead = nil
			if !plain(&pod) {
				continue
			}
			plainPods++
			requests := resourcehelper.PodRequests(&pod, resourcehelper.PodResourcesOptions{})
			if got, want := podRequest(&pod), quantityBytes(requests.Memory()); got != want {
				t.Errorf("request %d, want %d", got, want)
			}
			limits := resourcehelper.PodLimits(&pod, resourcehelper.PodResourcesOptions{})
			if got, ok := podLimit(&pod); ok && got != quantityBytes(limits.Memory()) {
				t.Errorf("limit %d, want %s", got, limits.Memory())
			}
		}
	})
	if plainPods == 0 {
		t.Error("no pod was plain")
	}
}
