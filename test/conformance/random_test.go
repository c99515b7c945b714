package conformance

import (
	"bytes"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"
	"sigs.k8s.io/yaml"

	"github.com/memqos/memqos/qos"
)

// The pods of any seed fit on the node, and each class is among them.
func TestRandomFits(t *testing.T) {
	for _, kubelet := range []string{"1.22.17", "1.27.4", "1.37.1"} {
		for seed := range uint64(50) {
			manifests, err := Random(seed, kubelet, RandomPods)
			if err != nil {
				t.Fatal(err)
			}
			var memory, cpu resource.Quantity
			classes := map[corev1.PodQOSClass]int{}
			sidecars, podLevel := 0, 0
			for doc := range strings.SplitSeq(string(manifests), "\n---\n") {
				var pod corev1.Pod
				if err := yaml.UnmarshalStrict([]byte(doc), &pod); err != nil {
					t.Fatalf("seed %d: %v\n%s", seed, err, doc)
				}
				if pod.Kind != "Pod" {
					continue
				}
				qos.SetDefaults(&pod)
				requests := resourcehelper.PodRequests(&pod, resourcehelper.PodResourcesOptions{})
				memory.Add(*requests.Memory())
				cpu.Add(*requests.Cpu())
				classes[qos.Class(&pod)]++
				for i := range pod.Spec.InitContainers {
					if pod.Spec.InitContainers[i].RestartPolicy != nil {
						sidecars++
					}
				}
				if pod.Spec.Resources != nil {
					podLevel++
				}
			}
			if memory.Cmp(resource.MustParse("1536Mi")) > 0 || cpu.Cmp(resource.MustParse("500m")) > 0 {
				t.Errorf("seed %d, %s: the requests add up to %s of memory and %s of cpu", seed, kubelet, &memory, &cpu)
			}
			if classes[corev1.PodQOSGuaranteed] < 4 || classes[corev1.PodQOSBurstable] < 4 || classes[corev1.PodQOSBestEffort] < 4 {
				t.Errorf("seed %d, %s: want 4 pods at least of each class, have %v", seed, kubelet, classes)
			}
			if old := kubelet != "1.37.1"; old && sidecars+podLevel > 0 {
				t.Errorf("seed %d: %d sidecars and %d pod-level resources for a kubelet %s, which knows neither", seed, sidecars, podLevel, kubelet)
			}
		}
	}
}

func TestRandomRepeats(t *testing.T) {
	first, err := Random(7, "1.37.1", RandomPods)
	if err != nil {
		t.Fatal(err)
	}
	again, err := Random(7, "1.37.1", RandomPods)
	if err != nil {
		t.Fatal(err)
	}
	other, err := Random(8, "1.37.1", RandomPods)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first, again) || bytes.Equal(first, other) {
		t.Error("want the same pods for the same seed, and others for another")
	}
	if _, err := Random(7, "latest", 1); err == nil {
		t.Error("no error for a release that is none")
	}
}
