package testnode

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/restmapper"
)

const fieldOwner = "testnode"

// Apply creates or updates the objects of a multi-document YAML, in its order.
// Pods that name no node get this one, whether or not there is a scheduler.
func (n *Node) Apply(ctx context.Context, manifests []byte) error {
	return n.each(ctx, manifests, func(client dynamic.ResourceInterface, object *unstructured.Unstructured) error {
		if object.GetKind() == "Pod" {
			name, _, err := unstructured.NestedString(object.Object, "spec", "nodeName")
			if err == nil && name == "" {
				err = unstructured.SetNestedField(object.Object, nodeName, "spec", "nodeName")
			}
			if err != nil {
				return err
			}
		}
		_, err := client.Apply(ctx, object.GetName(), object, metav1.ApplyOptions{FieldManager: fieldOwner, Force: true})
		if err == nil && object.GetKind() == "Namespace" && len(n.plane.controllers) > 0 {
			err = n.awaitServiceAccount(ctx, object.GetName())
		}
		return err
	})
}

// Delete deletes the objects of a multi-document YAML and waits until they are
// gone. It does not mind those that are gone already.
func (n *Node) Delete(ctx context.Context, manifests []byte) error {
	err := n.each(ctx, manifests, func(client dynamic.ResourceInterface, object *unstructured.Unstructured) error {
		err := client.Delete(ctx, object.GetName(), metav1.DeleteOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return err
	})
	if err != nil {
		return err
	}
	return n.each(ctx, manifests, func(client dynamic.ResourceInterface, object *unstructured.Unstructured) error {
		for {
			_, err := client.Get(ctx, object.GetName(), metav1.GetOptions{})
			if apierrors.IsNotFound(err) {
				return nil
			}
			if err != nil {
				return err
			}
			if err := pause(ctx, pollInterval); err != nil {
				return fmt.Errorf("wait for its end: %w", err)
			}
		}
	})
}

// WaitRunning returns once every pod among the manifests is Running with all
// of its containers started, or has Succeeded.
func (n *Node) WaitRunning(ctx context.Context, manifests []byte) error {
	objects, err := decode(manifests)
	if err != nil {
		return err
	}
	for _, object := range objects {
		if object.GetKind() != "Pod" {
			continue
		}
		namespace := orDefault(object.GetNamespace(), metav1.NamespaceDefault)
		if err := n.WaitPod(ctx, namespace, object.GetName()); err != nil {
			return err
		}
	}
	return nil
}

// WaitPod is WaitRunning for one pod.
func (n *Node) WaitPod(ctx context.Context, namespace, name string) error {
	var state string
	for {
		pod, err := n.clients.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{})
		switch {
		case err != nil: // not there yet, or an API server that is short of processor time
			state = err.Error()
		case started(pod):
			return nil
		default:
			state = describe(pod)
		}
		if err := guestDied(n.vm, n.dir); err != nil {
			return err
		}
		if err := pause(ctx, pollInterval); err != nil {
			return fmt.Errorf("wait for pod %s/%s to run: %w (%s)", namespace, name, err, state)
		}
	}
}

const pollInterval = 200 * time.Millisecond

func started(pod *corev1.Pod) bool {
	switch pod.Status.Phase {
	case corev1.PodSucceeded:
		return true
	case corev1.PodRunning:
		if len(pod.Status.ContainerStatuses) != len(pod.Spec.Containers) {
			return false
		}
		for _, status := range pod.Status.ContainerStatuses {
			if status.State.Running == nil && status.State.Terminated == nil {
				return false
			}
		}
		return true
	}
	return false
}

// describe says what a pod waits for.
func describe(pod *corev1.Pod) string {
	text := fmt.Sprintf("phase %s %s", pod.Status.Phase, pod.Status.Message)
	for _, statuses := range [][]corev1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses} {
		for _, status := range statuses {
			if waiting := status.State.Waiting; waiting != nil {
				text += fmt.Sprintf("; %s: %s %s", status.Name, waiting.Reason, waiting.Message)
			}
		}
	}
	return text
}

// each calls do for every object, with the client of its kind and namespace.
func (n *Node) each(ctx context.Context, manifests []byte, do func(dynamic.ResourceInterface, *unstructured.Unstructured) error) error {
	objects, err := decode(manifests)
	if err != nil {
		return err
	}
	client, err := dynamic.NewForConfig(n.plane.admin)
	if err != nil {
		return fmt.Errorf("make an API client: %w", err)
	}
	mapper := restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(n.clients.Discovery()))
	for _, object := range objects {
		if err := ctx.Err(); err != nil {
			return err
		}
		kind := object.GroupVersionKind()
		mapping, err := mapper.RESTMapping(kind.GroupKind(), kind.Version)
		if meta.IsNoMatchError(err) { // defined by an object before this one
			mapper.Reset()
			mapping, err = mapper.RESTMapping(kind.GroupKind(), kind.Version)
		}
		if err != nil {
			return fmt.Errorf("%s %s: %w", kind.Kind, object.GetName(), err)
		}
		var resource dynamic.ResourceInterface = client.Resource(mapping.Resource)
		if mapping.Scope.Name() == meta.RESTScopeNameNamespace {
			object.SetNamespace(orDefault(object.GetNamespace(), metav1.NamespaceDefault))
			resource = client.Resource(mapping.Resource).Namespace(object.GetNamespace())
		}
		if err := do(resource, object); err != nil {
			return fmt.Errorf("%s %s: %w", kind.Kind, object.GetName(), err)
		}
	}
	return nil
}

// decode splits a multi-document YAML, leaves empty documents out and lists open.
func decode(manifests []byte) ([]*unstructured.Unstructured, error) {
	decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(manifests), 4096)
	var objects []*unstructured.Unstructured
	for {
		var object unstructured.Unstructured
		err := decoder.Decode(&object.Object)
		if errors.Is(err, io.EOF) {
			return objects, nil
		}
		if err != nil {
			return nil, fmt.Errorf("decode manifests: %w", err)
		}
		switch {
		case len(object.Object) == 0:
		case object.IsList():
			err := object.EachListItem(func(item runtime.Object) error {
				if item, ok := item.(*unstructured.Unstructured); ok {
					objects = append(objects, item)
				}
				return nil
			})
			if err != nil {
				return nil, fmt.Errorf("decode a list: %w", err)
			}
		default:
			objects = append(objects, &object)
		}
	}
}
