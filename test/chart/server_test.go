//go:build chart && e2e

package chart

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/version"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/restmapper"
	sigsyaml "sigs.k8s.io/yaml"

	"github.com/memqos/memqos/hack/testnode"
)

// operator is where the custom resources of the Prometheus operator are taken from.
const operator = "github.com/prometheus-operator/prometheus-operator@v0.85.0"

// TestServers: API servers old and new take every object of the chart, and know every
// field of it; and helm takes a release there from install to uninstall. They have no
// node. SecurityContextConstraints are OpenShift's and left out.
func TestServers(t *testing.T) {
	const all = everything + `
rbac: {viewer: true, metricsReader: true}
dashboards: {enabled: true}
networkPolicy: {enabled: true, statusFrom: [{ipBlock: {cidr: 192.0.2.0/24}}]}
openshift: {scc: false}
`
	for _, release := range []string{"1.24.17", "1.27.4", "1.37.1"} {
		t.Run(release, func(t *testing.T) {
			s := startServer(t, release)
			values := merge(t, all)
			if version.MustParseGeneric(release).LessThan(version.MustParseGeneric("1.31.0")) {
				values = merge(t, all+"\nbundles: {enabled: true, recursiveReadOnly: Disabled}\n")
			}
			out := render(t, values, "--kube-version", release)
			n := 0
			for _, object := range s.objects(out) {
				// Strict: a field that the API server does not know is an error (not before 1.25).
				_, err := s.client(object).Create(t.Context(), object, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}, FieldValidation: metav1.FieldValidationStrict})
				if err != nil {
					t.Errorf("%s %s: %v", object.GetKind(), object.GetName(), err)
					continue
				}
				n++
			}
			t.Logf("%d objects accepted", n)
			s.podSecurity()
			s.life(values, out)
		})
	}
}

// merge lays values over each other whose top-level keys come twice, the last winning.
func merge(t *testing.T, values string) string {
	t.Helper()
	merged := map[string]any{}
	for line := range strings.Lines(values) {
		if err := sigsyaml.Unmarshal([]byte(line), &merged); err != nil {
			t.Fatal(err)
		}
	}
	out, err := sigsyaml.Marshal(merged)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// server is an API server.
type server struct {
	*testing.T
	plane   *testnode.ControlPlane
	clients kubernetes.Interface
	dynamic dynamic.Interface
	mapper  *restmapper.DeferredDiscoveryRESTMapper
}

func startServer(t *testing.T, release string) *server {
	t.Helper()
	plane, err := testnode.StartControlPlane(t.Context(), release, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := plane.Stop(); err != nil {
			t.Error(err)
		}
	})
	s := &server{T: t, plane: plane}
	if s.clients, err = kubernetes.NewForConfig(plane.RESTConfig()); err != nil {
		t.Fatal(err)
	}
	if s.dynamic, err = dynamic.NewForConfig(plane.RESTConfig()); err != nil {
		t.Fatal(err)
	}
	s.mapper = restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(s.clients.Discovery()))

	for name, enforce := range map[string]string{"memqos": "privileged", "baseline": "baseline"} {
		ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"pod-security.kubernetes.io/enforce": enforce}}}
		if _, err := s.clients.CoreV1().Namespaces().Create(t.Context(), ns, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.CommandContext(t.Context(), "go", "mod", "download", "-json", operator).Output()
	if err != nil {
		t.Fatalf("fetch %s: %v\n%s", operator, err, out)
	}
	var module struct{ Dir string }
	if err := json.Unmarshal(out, &module); err != nil {
		t.Fatal(err)
	}
	for _, resource := range []string{"podmonitors", "prometheusrules"} {
		data, err := os.ReadFile(filepath.Join(module.Dir, "example", "prometheus-operator-crd", "monitoring.coreos.com_"+resource+".yaml"))
		if err != nil {
			t.Fatal(err)
		}
		for _, object := range s.objects(string(data)) {
			if _, err := s.client(object).Create(t.Context(), object, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	s.eventually("the custom resources are there", func() error {
		list, err := s.clients.Discovery().ServerResourcesForGroupVersion("monitoring.coreos.com/v1")
		if err == nil && len(list.APIResources) < 2 {
			err = errors.New("only some")
		}
		return err
	})
	s.eventually("the priority class is there", func() error {
		_, err := s.clients.SchedulingV1().PriorityClasses().Get(t.Context(), "system-node-critical", metav1.GetOptions{})
		return err
	})
	s.mapper.Reset()
	return s
}

func (s *server) eventually(what string, check func() error) {
	s.Helper()
	deadline := time.Now().Add(time.Minute)
	for err := check(); err != nil; err = check() {
		if time.Now().After(deadline) {
			s.Fatalf("%s: not within a minute: %v", what, err)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

func (s *server) objects(manifests string) (all []*unstructured.Unstructured) {
	s.Helper()
	r := yaml.NewYAMLReader(bufio.NewReader(strings.NewReader(manifests)))
	for {
		doc, err := r.Read()
		if errors.Is(err, io.EOF) {
			return all
		}
		object := &unstructured.Unstructured{}
		if err == nil {
			err = sigsyaml.UnmarshalStrict(doc, &object.Object)
		}
		if err != nil {
			s.Fatal(err)
		}
		if len(object.Object) > 0 {
			all = append(all, object)
		}
	}
}

func (s *server) client(object *unstructured.Unstructured) dynamic.ResourceInterface {
	s.Helper()
	kind := object.GroupVersionKind()
	mapping, err := s.mapper.RESTMapping(kind.GroupKind(), kind.Version)
	if err != nil {
		s.Fatal(err)
	}
	if object.GetNamespace() == "" {
		return s.dynamic.Resource(mapping.Resource)
	}
	return s.dynamic.Resource(mapping.Resource).Namespace(object.GetNamespace())
}

// podSecurity: what the level baseline has against an agent's pod is its hostPaths and
// nothing else.
func (s *server) podSecurity() {
	s.Helper()
	var ds appsv1.DaemonSet
	decode(s.T, render(s.T, "{}"), "DaemonSet", &ds)
	pod := &corev1.Pod{ObjectMeta: ds.Spec.Template.ObjectMeta, Spec: ds.Spec.Template.Spec}
	pod.Name = "agent"
	dry := metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}
	if _, err := s.clients.CoreV1().Pods("memqos").Create(s.Context(), pod, dry); err != nil {
		s.Errorf("a namespace of level privileged does not admit an agent's pod: %v", err)
	}
	_, err := s.clients.CoreV1().Pods("baseline").Create(s.Context(), pod, dry)
	const want = `violates PodSecurity "baseline:latest": hostPath volumes (volumes "cgroup", "state")`
	if !apierrors.IsForbidden(err) || !strings.HasSuffix(err.Error(), want) {
		s.Errorf("the level baseline says %v, want %s", err, want)
	}
}

// life takes a release from install to uninstall. manifests are what it is made of.
func (s *server) life(values, manifests string) {
	s.Helper()
	data, err := s.plane.Kubeconfig("admin", "system:masters")
	if err != nil {
		s.Fatal(err)
	}
	dir := s.TempDir()
	for name, content := range map[string][]byte{"kubeconfig": data, "values.yaml": []byte(values)} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			s.Fatal(err)
		}
	}
	helm := func(args ...string) {
		s.Helper()
		cmd := exec.CommandContext(s.Context(), os.Getenv("HELM"), append(args, "--namespace=memqos", "--kubeconfig="+filepath.Join(dir, "kubeconfig"))...)
		if out, err := cmd.CombinedOutput(); err != nil {
			s.Fatalf("helm %s: %v\n%s", args[0], err, out)
		}
	}
	// state is the configuration, and how often the pods were made anew.
	state := func() string {
		s.Helper()
		cm, err := s.clients.CoreV1().ConfigMaps("memqos").Get(s.Context(), "memqos", metav1.GetOptions{})
		if err != nil {
			s.Fatal(err)
		}
		ds, err := s.clients.AppsV1().DaemonSets("memqos").Get(s.Context(), "memqos", metav1.GetOptions{})
		if err != nil {
			s.Fatal(err)
		}
		var c struct{ MemoryThrottlingFactor float64 }
		if err := sigsyaml.Unmarshal([]byte(cm.Data["config.yaml"]), &c); err != nil {
			s.Fatal(err)
		}
		return fmt.Sprintf("factor %v, generation %d", c.MemoryThrottlingFactor, ds.Generation)
	}
	var got []string
	helm("install", "memqos", chartDir, "--values="+filepath.Join(dir, "values.yaml"))
	got = append(got, state())
	helm("upgrade", "memqos", chartDir, "--reuse-values", "--set-json=config.memoryThrottlingFactor=0.5")
	got = append(got, state())
	helm("rollback", "memqos", "1")
	got = append(got, state())
	want := []string{"factor 0.8, generation 1", "factor 0.5, generation 1", "factor 0.8, generation 1"}
	if diff := cmp.Diff(want, got); diff != "" {
		s.Errorf("installed, upgraded, rolled back (-want +got):\n%s", diff)
	}
	helm("uninstall", "memqos")
	for _, object := range s.objects(manifests) {
		if _, err := s.client(object).Get(s.Context(), object.GetName(), metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			s.Errorf("%s %s after the uninstall: %v, want that it is gone", object.GetKind(), object.GetName(), err)
		}
	}
}
