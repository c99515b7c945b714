package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// podReader gathers pods from a stream of objects.
type podReader struct {
	pods  []corev1.Pod
	notes []string // what was passed over
	// overhead of the RuntimeClasses in the stream, by name: the API server gives
	// it to the pods that name the class.
	overhead map[string]corev1.ResourceList
}

// readPods reads every pod of a stream of JSON or YAML documents. What is
// something else is passed over, with a note.
func readPods(in io.Reader) (pods []corev1.Pod, notes []string, err error) {
	r := podReader{overhead: map[string]corev1.ResourceList{}}
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
			return nil, nil, fmt.Errorf("document %d: %s", n, strings.Join(strings.Fields(err.Error()), " "))
		}
		if string(asJSON) == "null" {
			continue // only comments
		}
		if err := r.add(asJSON, fmt.Sprintf("document %d", n)); err != nil {
			return nil, nil, err
		}
	}
	if len(r.pods) == 0 {
		return nil, nil, fmt.Errorf("holds no pod (want Pod, PodList or List): %s", strings.Join(append(r.notes, "end of input"), ", "))
	}
	for i := range r.pods {
		if class := r.pods[i].Spec.RuntimeClassName; class != nil && r.pods[i].Spec.Overhead == nil {
			r.pods[i].Spec.Overhead = r.overhead[*class]
		}
	}
	return r.pods, r.notes, nil
}

// add takes in one object; at says where it stands.
func (r *podReader) add(data []byte, at string) error {
	var head struct {
		metav1.TypeMeta   `json:",inline"`
		metav1.ObjectMeta `json:"metadata"`
		Items             []runtime.RawExtension `json:"items"`
	}
	if err := kjson.UnmarshalCaseSensitivePreserveInts(data, &head); err != nil {
		return fmt.Errorf("%s: %w", at, err)
	}
	switch kind := head.APIVersion + " " + head.Kind; {
	case kind == "v1 Pod":
		at = fmt.Sprintf("%s (pod %s)", at, head.Name)
		var pod corev1.Pod
		if err := kjson.UnmarshalCaseSensitivePreserveInts(data, &pod); err != nil {
			return fmt.Errorf("%s: %w", at, err)
		}
		if pod.Namespace == "" {
			pod.Namespace = metav1.NamespaceDefault
		}
		if errs := validatePod(&pod); len(errs) > 0 {
			return fmt.Errorf("%s: %w", at, errs.ToAggregate())
		}
		r.pods = append(r.pods, pod)
	case kind == "v1 List", kind == "v1 PodList":
		for i := range head.Items {
			item, at := head.Items[i].Raw, fmt.Sprintf("%s, item %d", at, i)
			if head.Kind == "PodList" {
				var err error
				if item, err = withType(item); err != nil {
					return fmt.Errorf("%s: %w", at, err)
				}
			}
			if err := r.add(item, at); err != nil {
				return err
			}
		}
	case kind == "node.k8s.io/v1 RuntimeClass":
		var class nodev1.RuntimeClass
		if err := kjson.UnmarshalCaseSensitivePreserveInts(data, &class); err != nil {
			return fmt.Errorf("%s (RuntimeClass %s): %w", at, head.Name, err)
		}
		if class.Overhead != nil {
			r.overhead[class.Name] = class.Overhead.PodFixed
		}
	case head.Kind == "":
		return fmt.Errorf("%s: is no Kubernetes object: it has no kind", at)
	default:
		r.notes = append(r.notes, fmt.Sprintf("%s: %s %s is passed over, it is no pod", at, kind, head.Name))
	}
	return nil
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
