//go:build e2e

package footprint

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/memqos/memqos/controllers"
	"github.com/memqos/memqos/hack/testnode"
)

const account = "system:serviceaccount:memqos:memqos"

// lacks is what an agent does without one of its rules.
type lacks struct {
	resource string // of the rule that is taken away; "" for none
	ready    bool   // its first full pass ends
	bytes    int64  // node allocatable that it knows, where kubepods has no memory.max
	event    bool   // it tells the Node that its configuration is refused
	gone     bool   // it takes itself for uninstalled, and gives all values back at its end
}

// TestRules takes each rule of deploy/rbac.yaml away, and sees what docs/security.md
// says is lost by it; with all of them the API server refuses nothing.
func TestRules(t *testing.T) {
	binary := build(t, "agent")
	plane, dir := startPlane(t, "1.27.4")
	clients, err := kubernetes.NewForConfig(plane.RESTConfig())
	if err != nil {
		t.Fatal(err)
	}
	const allocatable = 1 << 30
	cluster, own := giveRights(t, clients)
	node, err := clients.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: nodeName}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	node.Status.Allocatable = corev1.ResourceList{corev1.ResourceMemory: *resource.NewQuantity(allocatable, resource.BinarySI)}
	if _, err := clients.CoreV1().Nodes().UpdateStatus(t.Context(), node, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	makeDaemonSet(t, clients)

	all := lacks{ready: true, bytes: allocatable, event: true}
	cases := []lacks{
		all,
		{resource: "pods", bytes: allocatable},
		{resource: "nodes", ready: true, event: true},
		{resource: "events", ready: true, bytes: allocatable},
		{resource: "daemonsets", ready: true, bytes: allocatable, event: true, gone: true},
	}
	if rules := len(cluster.Rules) + len(own.Rules); rules != len(cases)-1 {
		t.Fatalf("deploy/rbac.yaml has %d rules, and this test takes away %d", rules, len(cases)-1)
	}
	for i, want := range cases {
		t.Run("without "+want.resource, func(t *testing.T) {
			c, o := cluster.DeepCopy(), own.DeepCopy()
			without := func(rules []rbacv1.PolicyRule) []rbacv1.PolicyRule {
				return slices.DeleteFunc(rules, func(r rbacv1.PolicyRule) bool { return slices.Contains(r.Resources, want.resource) })
			}
			c.Rules, o.Rules = without(c.Rules), without(o.Rules)
			c.ResourceVersion, o.ResourceVersion = "", ""
			if _, err := clients.RbacV1().ClusterRoles().Update(t.Context(), c, metav1.UpdateOptions{}); err != nil {
				t.Fatal(err)
			}
			if _, err := clients.RbacV1().Roles("memqos").Update(t.Context(), o, metav1.UpdateOptions{}); err != nil {
				t.Fatal(err)
			}
			if err := clients.EventsV1().Events("").DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
				if err := clients.EventsV1().Events("default").DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
					t.Fatal(err)
				}
			}
			withoutRule(t, plane, clients, binary, filepath.Join(dir, fmt.Sprint(i)), 23000+10*i, want)
		})
	}
}

func withoutRule(t *testing.T, plane *testnode.ControlPlane, clients kubernetes.Interface, binary, dir string, port int, want lacks) {
	before := refused(t, plane)
	emptyTree(t, dir, "max")
	data, err := plane.Kubeconfig(account, "system:serviceaccounts", "system:serviceaccounts:memqos")
	if err != nil {
		t.Fatal(err)
	}
	kubeconfig := write(t, dir, "kubeconfig", string(data))
	configuration := agentConfig(t, dir, port)
	run(t, binary, "agent", kubeconfig, nodeName, configuration, dir+"/cgroup")
	health := fmt.Sprintf("http://127.0.0.1:%d/readyz", port)
	series := fmt.Sprintf("http://127.0.0.1:%d/metrics", port+1000)
	newly := func() map[string]int {
		count := refused(t, plane)
		for request, n := range before {
			if count[request] -= n; count[request] == 0 {
				delete(count, request)
			}
		}
		return count
	}

	if !want.ready {
		eventually(t, func() error {
			if n := newly()["list /api/v1/pods"]; n < 3 {
				return fmt.Errorf("pods were refused %d times", n)
			}
			return nil
		})
		if err := ready(health); err == nil {
			t.Error("the agent is ready, and knows no pod")
		}
		if got := read(t, filepath.Join(dir, "cgroup/kubepods/memory.min")); got != "0\n" {
			t.Errorf("the agent knows no pod, and wrote memory.min %q", got)
		}
		return
	}
	eventually(t, func() error { return ready(health) })
	known := lines(t, series, "memqos_node_allocatable_bytes")
	if (known != "") != (want.bytes != 0) || want.bytes != 0 && known != fmt.Sprintf("memqos_node_allocatable_bytes %s", "1.073741824e+09") {
		t.Errorf("node allocatable: %q, want %d", known, want.bytes)
	}

	write(t, dir, "config.yaml", "apiVersion: memqos.io/v1alpha1\nkind: MemoryQoSConfiguration\nmode: Neither\n")
	eventually(t, func() error {
		if want.event {
			events, err := clients.EventsV1().Events("").List(t.Context(), metav1.ListOptions{})
			if err == nil && !slices.ContainsFunc(events.Items, func(e eventsv1.Event) bool { return e.Reason == "MemoryQoSConfigurationRefused" }) {
				err = fmt.Errorf("no event MemoryQoSConfigurationRefused among %d", len(events.Items))
			}
			return err
		}
		for request := range newly() {
			if strings.HasPrefix(request, "create /apis/events.k8s.io/") {
				return nil
			}
		}
		return fmt.Errorf("no event was refused")
	})
	if !want.event {
		if events, err := clients.EventsV1().Events("").List(t.Context(), metav1.ListOptions{}); err != nil || len(events.Items) != 0 {
			t.Errorf("%d events (%v), want none", len(events.Items), err)
		}
	}

	api, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	gone, err := controllers.Uninstalled(t.Context(), api, client.ObjectKey{Namespace: "memqos", Name: "memqos"})
	if err != nil || gone != want.gone {
		t.Errorf("the agent takes itself for uninstalled: %v (%v), want %v", gone, err, want.gone)
	}
	denied := newly()
	t.Logf("refused: %v", denied)
	if (len(denied) > 0) != (want.resource != "") {
		t.Errorf("without a rule on %q the API server refused %v", want.resource, denied)
	}
	for request := range denied {
		if !strings.Contains(request, "/"+want.resource) {
			t.Errorf("%s is refused without a rule on %q", request, want.resource)
		}
	}
}

// giveRights makes the objects of deploy/rbac.yaml.
func giveRights(t *testing.T, clients kubernetes.Interface) (*rbacv1.ClusterRole, *rbacv1.Role) {
	t.Helper()
	data, err := os.ReadFile("../../deploy/rbac.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var cluster rbacv1.ClusterRole
	var clusterBinding rbacv1.ClusterRoleBinding
	var role rbacv1.Role
	var binding rbacv1.RoleBinding
	for doc := range strings.SplitSeq(string(data), "\n---\n") {
		var kind metav1.TypeMeta
		if err := yaml.Unmarshal([]byte(doc), &kind); err != nil {
			t.Fatal(err)
		}
		into := map[string]any{"ClusterRole": &cluster, "ClusterRoleBinding": &clusterBinding, "Role": &role, "RoleBinding": &binding}[kind.Kind]
		if into == nil {
			continue
		}
		if err := yaml.UnmarshalStrict([]byte(doc), into); err != nil {
			t.Fatal(err)
		}
	}
	rbac := clients.RbacV1()
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "memqos"}}
	if _, err := clients.CoreV1().Namespaces().Create(t.Context(), namespace, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, create := range []func() error{
		func() error {
			_, err := rbac.ClusterRoles().Create(t.Context(), &cluster, metav1.CreateOptions{})
			return err
		},
		func() error {
			_, err := rbac.ClusterRoleBindings().Create(t.Context(), &clusterBinding, metav1.CreateOptions{})
			return err
		},
		func() error {
			_, err := rbac.Roles("memqos").Create(t.Context(), &role, metav1.CreateOptions{})
			return err
		},
		func() error {
			_, err := rbac.RoleBindings("memqos").Create(t.Context(), &binding, metav1.CreateOptions{})
			return err
		},
	} {
		if err := create(); err != nil {
			t.Fatal(err)
		}
	}
	return &cluster, &role
}

func makeDaemonSet(t *testing.T, clients kubernetes.Interface) {
	t.Helper()
	labels := map[string]string{"app": "memqos"}
	set := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Name: "memqos"}}
	set.Spec.Selector = &metav1.LabelSelector{MatchLabels: labels}
	set.Spec.Template.Labels = labels
	set.Spec.Template.Spec.Containers = []corev1.Container{{Name: "memqos", Image: "memqos"}}
	if _, err := clients.AppsV1().DaemonSets("memqos").Create(t.Context(), set, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// refused counts what the API server has refused the agent, by verb and path.
func refused(t *testing.T, plane *testnode.ControlPlane) map[string]int {
	t.Helper()
	count := map[string]int{}
	for line := range strings.Lines(read(t, plane.AuditLog())) {
		var event struct {
			Verb, RequestURI string
			User             struct{ Username string }
			ResponseStatus   struct{ Code int }
		}
		if err := json.Unmarshal([]byte(line), &event); err != nil {
			break // the last line may be half written
		}
		if event.User.Username == account && event.ResponseStatus.Code == 403 {
			path, _, _ := strings.Cut(event.RequestURI, "?")
			count[event.Verb+" "+path]++
		}
	}
	return count
}
