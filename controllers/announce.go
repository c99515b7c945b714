package controllers

import (
	"fmt"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// announcer emits events, each once for a change of state: not again while the
// state lasts. It is for concurrent use.
type announcer struct {
	recorder events.EventRecorder
	nodeName string

	mu   sync.Mutex
	said map[client.ObjectKey]map[string]bool // by pod, and by name of the Node: what lasts
}

func newAnnouncer(recorder events.EventRecorder, nodeName string) *announcer {
	return &announcer{recorder: recorder, nodeName: nodeName, said: map[client.ObjectKey]map[string]bool{}}
}

// nodeState is node for what lasts: it emits the event if that did not hold before.
func (a *announcer) nodeState(subject string, holds bool, kind, reason, action, note string) {
	if a.begins(client.ObjectKey{Name: a.nodeName}, reason+" "+subject, holds) {
		a.node(kind, reason, action, note)
	}
}

// node emits an event on the Node, as the kubelet does: with the name for a uid,
// by which kubectl describe finds it.
func (a *announcer) node(kind, reason, action, note string) {
	node := &corev1.Node{}
	node.Name, node.UID = a.nodeName, types.UID(a.nodeName)
	a.recorder.Eventf(node, nil, kind, reason, action, "%s", note)
}

// pod emits an event on a pod, or on the container that subject names, if what it
// tells of did not hold before, and reports whether it did. subject tells apart what
// may hold at the same time.
func (a *announcer) pod(pod *corev1.Pod, subject string, holds bool, kind, reason, action, note string) (said bool) {
	said = a.begins(client.ObjectKeyFromObject(pod), reason+" "+subject, holds)
	if said {
		a.always(pod, subject, kind, reason, action, note)
	}
	return said
}

// begins takes in whether something holds, and reports whether it does and did not
// before.
func (a *announcer) begins(key client.ObjectKey, what string, holds bool) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	held := a.said[key][what]
	switch {
	case holds && !held:
		if a.said[key] == nil {
			a.said[key] = map[string]bool{}
		}
		a.said[key][what] = true
	case !holds && held:
		delete(a.said[key], what)
	}
	return holds && !held
}

// always emits an event on a pod, or on a container of it, for what is a change by itself.
func (a *announcer) always(pod *corev1.Pod, container, kind, reason, action, note string) {
	a.recorder.Eventf(about(pod, container), nil, kind, reason, action, "%s", note)
}

// about is what an event is about: a container of the pod, by the field path that the
// kubelet's events have too, or the pod if there is none of that name. By that the
// recorder tells them apart: of two events that have it in common within minutes it
// keeps the first one's note and a count.
func about(pod *corev1.Pod, container string) runtime.Object {
	ref := &corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID}
	in := func(field string) { ref.FieldPath = fmt.Sprintf("spec.%s{%s}", field, container) }
	for i := range pod.Spec.InitContainers {
		if pod.Spec.InitContainers[i].Name == container {
			in("initContainers")
		}
	}
	for i := range pod.Spec.Containers {
		if pod.Spec.Containers[i].Name == container {
			in("containers")
		}
	}
	for i := range pod.Spec.EphemeralContainers {
		if pod.Spec.EphemeralContainers[i].Name == container {
			in("ephemeralContainers")
		}
	}
	return ref
}

// forget drops what was said of a pod that is gone.
func (a *announcer) forget(pod client.ObjectKey) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.said, pod)
}
