package plugin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/memqos/memqos/status"
)

const (
	// inFlight is how many agents are asked at the same time.
	inFlight = 32
	// lateInFlight is how many more there may be that have not answered within the
	// patience, or are not expected to.
	lateInFlight = 64
	// patience is how long one may take that others wait for, and one that is not Ready.
	patience = time.Second
)

// statusPort is the name of the port of an agent's container on which it serves its
// status. One that serves it on the loopback alone declares none.
const statusPort = "status"

// cluster is where the agents are.
type cluster struct {
	clients   corev1client.CoreV1Interface
	namespace string        // of the agents
	selector  string        // of their pods
	timeout   time.Duration // for each answer
	patience  time.Duration
	down      map[string]bool // nodes that are known not to be ready
}

// answer is what came of asking the agent of one node.
type answer struct {
	Node   string
	Pod    string // the agent's, namespace/name
	Status *status.NodeStatus
	Err    error
}

// agents lists the pods of the agents, those of one node if it is named: one request.
func (c *cluster) agents(ctx context.Context, node string) ([]corev1.Pod, error) {
	o := metav1.ListOptions{LabelSelector: c.selector}
	if node != "" {
		o.FieldSelector = fields.OneTermEqualSelector("spec.nodeName", node).String()
	}
	list, err := c.clients.Pods(c.namespace).List(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("list the agents' pods in namespace %s: %w", c.namespace, err)
	}
	// While agents are being replaced a node has two: the one that ends is left out.
	pods := slices.DeleteFunc(list.Items, func(p corev1.Pod) bool { return p.DeletionTimestamp != nil || p.Spec.NodeName == "" })
	if len(pods) == 0 && node != "" {
		return nil, fmt.Errorf("no agent runs on node %s: there is no pod with %s in namespace %s (--agent-namespace, --agent-selector)", node, c.selector, c.namespace)
	}
	if len(pods) == 0 {
		return nil, fmt.Errorf("there are no agents: no pod with %s in namespace %s (--agent-namespace, --agent-selector)", c.selector, c.namespace)
	}
	slices.SortFunc(pods, func(a, b corev1.Pod) int {
		return cmp.Or(strings.Compare(a.Spec.NodeName, b.Spec.NodeName), b.CreationTimestamp.Compare(a.CreationTimestamp.Time))
	})
	return slices.CompactFunc(pods, func(a, b corev1.Pod) bool { return a.Spec.NodeName == b.Spec.NodeName }), nil
}

// ask asks every agent, one request each, and a bounded number at the same time. Those
// that do not answer delay nobody: who is not Ready has slots apart and the patience for
// a timeout, unless nobody is Ready; who should answer and has not within the patience
// goes on in one of those slots and leaves its own to the next. namespace and pod are of
// the only pod that is asked for, or empty.
func (c *cluster) ask(ctx context.Context, agents []corev1.Pod, namespace, pod string) []answer {
	out := make([]answer, len(agents))
	slots, late := make(chan struct{}, inFlight), make(chan struct{}, lateInFlight)
	someReady := slices.ContainsFunc(agents, c.ready)
	var wait sync.WaitGroup
	for i := range agents {
		agent := agents[i]
		out[i] = answer{Node: agent.Spec.NodeName, Pod: key(&agent)}
		put := func(timeout time.Duration) {
			out[i].Status, out[i].Err = c.askOne(ctx, &agent, timeout, namespace, pod)
		}
		wait.Go(func() {
			if !c.ready(agent) {
				late <- struct{}{}
				defer func() { <-late }()
				timeout := c.timeout
				if someReady {
					timeout = min(timeout, c.patience)
				}
				put(timeout)
				return
			}
			slots <- struct{}{}
			done := make(chan struct{})
			wait.Go(func() { defer close(done); put(c.timeout) })
			select {
			case <-done:
			case <-time.After(c.patience):
				select {
				case <-done:
				case late <- struct{}{}:
					defer func() { <-done; <-late }()
				}
			}
			<-slots
		})
	}
	wait.Wait()
	return out
}

// ready reports whether an agent is expected to answer.
func (c *cluster) ready(agent corev1.Pod) bool {
	return !c.down[agent.Spec.NodeName] && slices.ContainsFunc(agent.Status.Conditions, func(x corev1.PodCondition) bool {
		return x.Type == corev1.PodReady && x.Status == corev1.ConditionTrue
	})
}

func (c *cluster) askOne(ctx context.Context, agent *corev1.Pod, timeout time.Duration, namespace, pod string) (*status.NodeStatus, error) {
	port := portOf(agent)
	switch {
	case port == "":
		return nil, errors.New(`its status is not on the pod's network: set config.statusBindAddress to ":9812" (docs/security.md has the price)`)
	case agent.Status.PodIP == "":
		return nil, fmt.Errorf("its agent %s has no address yet (%s)", agent.Name, agent.Status.Phase)
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	req := c.clients.RESTClient().Get().Namespace(agent.Namespace).Resource("pods").
		Name(utilnet.JoinSchemeNamePort("http", agent.Name, port)).SubResource("proxy").Suffix("status")
	if pod != "" {
		req = req.Param("namespace", namespace).Param("pod", pod)
	}
	body, err := req.Stream(ctx)
	if err == nil {
		defer body.Close() //nolint:errcheck // read only
		var data []byte
		if data, err = io.ReadAll(io.LimitReader(body, status.MaxSize)); err == nil {
			return status.Parse(data)
		}
	}
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded) && timeout < c.timeout:
		return nil, fmt.Errorf("no answer within %s (not ready)", timeout)
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return nil, fmt.Errorf("no answer within %s", timeout)
	case apierrors.IsForbidden(err):
		return nil, fmt.Errorf("not allowed: get on pods/proxy in namespace %s is needed (ClusterRole memqos-viewer)", agent.Namespace)
	}
	return nil, fmt.Errorf("no answer: %s", oneLine(err.Error()))
}

func portOf(agent *corev1.Pod) string {
	for i := range agent.Spec.Containers {
		for _, p := range agent.Spec.Containers[i].Ports {
			if p.Name == statusPort {
				return fmt.Sprint(p.ContainerPort)
			}
		}
	}
	return ""
}

func oneLine(s string) string {
	return status.Printable(strings.Join(strings.Fields(s), " "))
}
