//go:build e2e

package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/yaml"

	"github.com/memqos/memqos/hack/testnode"
	"github.com/memqos/memqos/test/conformance"
)

// resize resizes running pods in place, as kubectl patch --subresource resize does,
// to the resources of a manifest, and waits until the kubelet is done with it.
func resize(t *testing.T, node *testnode.Node, manifest string) {
	t.Helper()
	pods := podsOf(t, manifest)
	client := clientset(t, node).CoreV1().Pods(metav1.NamespaceDefault)
	for i := range pods {
		type container struct {
			Name      string                      `json:"name"`
			Resources corev1.ResourceRequirements `json:"resources"`
		}
		spec := map[string]any{}
		if pods[i].Spec.Resources != nil {
			spec["resources"] = pods[i].Spec.Resources
		}
		var containers []container
		for _, c := range pods[i].Spec.Containers {
			containers = append(containers, container{c.Name, c.Resources})
		}
		spec["containers"] = containers
		patch, err := json.Marshal(map[string]any{"spec": spec})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := client.Patch(t.Context(), pods[i].Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "resize"); err != nil {
			t.Fatalf("resize %s: %v", pods[i].Name, err)
		}
	}
	eventually(t, "the kubelet has done the resizes of "+manifest, func() error {
		for i := range pods {
			pod, err := client.Get(t.Context(), pods[i].Name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			if err := resized(pod); err != nil {
				return fmt.Errorf("pod %s: %w", pod.Name, err)
			}
		}
		return nil
	})
}

// resized is an error as long as the kubelet has not done what the spec asks for.
func resized(pod *corev1.Pod) error {
	if pod.Status.ObservedGeneration < pod.Generation {
		return fmt.Errorf("generation %d of %d is seen", pod.Status.ObservedGeneration, pod.Generation)
	}
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodResizePending || c.Type == corev1.PodResizeInProgress {
			return fmt.Errorf("%s: %s %s", c.Type, c.Reason, c.Message)
		}
	}
	for _, status := range pod.Status.ContainerStatuses {
		if status.RestartCount > 0 {
			return fmt.Errorf("container %s was restarted", status.Name)
		}
	}
	return nil
}

func podsOf(t *testing.T, manifest string) (pods []corev1.Pod) {
	t.Helper()
	decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(read(t, manifest)), 4096)
	for {
		var pod corev1.Pod
		err := decoder.Decode(&pod)
		if errors.Is(err, io.EOF) {
			return pods
		}
		if err != nil {
			t.Fatal(err)
		}
		pods = append(pods, pod)
	}
}

// ofResize leaves of a snapshot what resizes change.
func ofResize(s conformance.Snapshot) conformance.Snapshot {
	s = maps.Clone(s)
	maps.DeleteFunc(s, func(name string, _ map[string]string) bool {
		return name != "kubepods" && name != "burstable" &&
			!strings.HasPrefix(name, "pod default/resize") && !strings.HasPrefix(name, "container default/resize")
	})
	return s
}

// testResize: after each resize the files are those that they were under the
// kubelet with the gate on, but for what is known to deviate.
func testResize(t *testing.T, node *testnode.Node, oracle conformance.Record) {
	for i, step := range oracle.Resizes {
		r := oracle.Resized(i)
		planned := plan(t, r)
		c := r.Compare(planned)
		for _, cgroup := range slices.Sorted(maps.Keys(c.Differences)) {
			t.Errorf("%s: %s: %s", step.Manifest, cgroup, strings.Join(c.Differences[cgroup], "; "))
		}
		for _, cgroup := range slices.Sorted(maps.Keys(c.Deviations)) {
			t.Logf("%s deviates: %s: %s", step.Manifest, cgroup, strings.Join(c.Deviations[cgroup], "; "))
		}
		resize(t, node, step.Manifest)
		eventually(t, "parity after "+step.Manifest, func() error {
			return same(differences(r.Expected(planned), ofResize(takeSnapshot(t, node))))
		})
	}
}
