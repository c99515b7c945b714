package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// readPods reads every pod of a stream of JSON or YAML documents. What is
// something else is passed over, with a note.
func readPods(in io.Reader) (pods []corev1.Pod, notes []string, err error) {
	docs := utilyaml.NewYAMLReader(bufio.NewReader(in))
	for n := 1; ; n++ {
		doc, err := docs.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, nil, err
		}
		asJSON, err := yaml.YAMLToJSON(doc)
		if err != nil {
			return nil, nil, fmt.Errorf("document %d: %s", n, joinLines(err.Error()))
		}
		if string(asJSON) == "null" {
			continue // only comments
		}
		p, ns, err := podsOf(asJSON, fmt.Sprintf("document %d", n))
		if err != nil {
			return nil, nil, err
		}
		pods, notes = append(pods, p...), append(notes, ns...)
	}
	if len(pods) == 0 {
		return nil, nil, fmt.Errorf("holds no pod (want Pod, PodList or List)%s", also(notes))
	}
	return pods, notes, nil
}

func also(notes []string) string {
	if len(notes) == 0 {
		return ""
	}
	return ": " + notes[0]
}

// podsOf returns the pods of one object; at says where it stands.
func podsOf(data []byte, at string) (pods []corev1.Pod, notes []string, err error) {
	var head struct {
		metav1.TypeMeta   `json:",inline"`
		metav1.ObjectMeta `json:"metadata"`
		Items             []runtime.RawExtension `json:"items"`
	}
	if err := kjson.UnmarshalCaseSensitivePreserveInts(data, &head); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", at, err)
	}
	switch {
	case head.APIVersion == "v1" && head.Kind == "Pod":
		at = fmt.Sprintf("%s (pod %s)", at, head.Name)
		var pod corev1.Pod
		if err := kjson.UnmarshalCaseSensitivePreserveInts(data, &pod); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", at, err)
		}
		if pod.Namespace == "" {
			pod.Namespace = metav1.NamespaceDefault
		}
		if errs := validatePod(&pod); len(errs) > 0 {
			return nil, nil, fmt.Errorf("%s: %w", at, errs.ToAggregate())
		}
		return []corev1.Pod{pod}, nil, nil
	case head.APIVersion == "v1" && (head.Kind == "List" || head.Kind == "PodList"):
		for i := range head.Items {
			item := head.Items[i].Raw
			if head.Kind == "PodList" {
				if item, err = withType(item); err != nil {
					return nil, nil, fmt.Errorf("%s, item %d: %w", at, i, err)
				}
			}
			p, ns, err := podsOf(item, fmt.Sprintf("%s, item %d", at, i))
			if err != nil {
				return nil, nil, err
			}
			pods, notes = append(pods, p...), append(notes, ns...)
		}
		return pods, notes, nil
	case head.Kind == "":
		return nil, nil, fmt.Errorf("%s: is no Kubernetes object: it has no kind", at)
	}
	return nil, []string{fmt.Sprintf("%s: %s %s %s is passed over, it is no pod", at, head.APIVersion, head.Kind, head.Name)}, nil
}

// withType gives an item of a PodList, which the API server sends without one,
// its kind.
func withType(item []byte) ([]byte, error) {
	object := map[string]json.RawMessage{}
	if err := json.Unmarshal(item, &object); err != nil {
		return nil, err
	}
	object["apiVersion"], object["kind"] = json.RawMessage(`"v1"`), json.RawMessage(`"Pod"`)
	return json.Marshal(object)
}

// validatePod refuses what the API server would, as far as memory goes: no
// cgroup could come of it.
func validatePod(pod *corev1.Pod) field.ErrorList {
	var errs field.ErrorList
	spec := field.NewPath("spec")
	if pod.Name == "" && pod.GenerateName == "" {
		errs = append(errs, field.Required(field.NewPath("metadata", "name"), "a pod has a name"))
	}
	if len(pod.Spec.Containers) == 0 {
		errs = append(errs, field.Required(spec.Child("containers"), "a pod has at least one container"))
	}
	for _, x := range []struct {
		name       string
		containers []corev1.Container
	}{{"initContainers", pod.Spec.InitContainers}, {"containers", pod.Spec.Containers}} {
		for i := range x.containers {
			errs = append(errs, validateResources(&x.containers[i].Resources, spec.Child(x.name).Index(i).Child("resources"))...)
		}
	}
	if pod.Spec.Resources != nil {
		errs = append(errs, validateResources(pod.Spec.Resources, spec.Child("resources"))...)
	}
	if q := pod.Spec.Overhead.Memory(); q.Sign() < 0 {
		errs = append(errs, field.Invalid(spec.Child("overhead").Key("memory"), q.String(), "must not be negative"))
	}
	return errs
}

func validateResources(r *corev1.ResourceRequirements, at *field.Path) field.ErrorList {
	var errs field.ErrorList
	request, hasRequest := r.Requests[corev1.ResourceMemory]
	limit, hasLimit := r.Limits[corev1.ResourceMemory]
	if request.Sign() < 0 {
		errs = append(errs, field.Invalid(at.Child("requests").Key("memory"), request.String(), "must not be negative"))
	}
	if limit.Sign() < 0 {
		errs = append(errs, field.Invalid(at.Child("limits").Key("memory"), limit.String(), "must not be negative"))
	}
	if hasRequest && hasLimit && request.Cmp(limit) > 0 {
		errs = append(errs, field.Invalid(at.Child("requests").Key("memory"), request.String(), "must not be above the limit "+limit.String()))
	}
	return errs
}
