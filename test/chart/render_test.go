//go:build chart

package chart

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/yaml"
	sigsyaml "sigs.k8s.io/yaml"

	"github.com/memqos/memqos/config"
)

// template is helm template with these values, as YAML.
func template(t *testing.T, values string, args ...string) (string, error) {
	t.Helper()
	helm := os.Getenv("HELM")
	if helm == "" {
		t.Fatal("HELM is not set: run `make chart`")
	}
	cmd := exec.Command(helm, append([]string{"template", "memqos", chartDir, "--namespace", "memqos", "--kube-version", "1.37.1", "--values", "-"}, args...)...)
	cmd.Stdin = strings.NewReader(values)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", errors.New(stderr.String())
	}
	return string(out), nil
}

func render(t *testing.T, values string, args ...string) string {
	t.Helper()
	out, err := template(t, values, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// decode fills into with the object of that kind; unknown fields are faults.
func decode(t *testing.T, manifests, kind string, into any) {
	t.Helper()
	r := yaml.NewYAMLReader(bufio.NewReader(strings.NewReader(manifests)))
	for {
		doc, err := r.Read()
		if errors.Is(err, io.EOF) {
			t.Fatalf("no %s", kind)
		}
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(append([]byte("\n"), doc...), []byte("\nkind: "+kind+"\n")) {
			if err := sigsyaml.UnmarshalStrict(doc, into); err != nil {
				t.Fatalf("%s: %v", kind, err)
			}
			return
		}
	}
}

// everything sets each value that turns something on.
const everything = `
commonLabels: {team: node}
image: {digest: "sha256:0000000000000000000000000000000000000000000000000000000000000000"}
imagePullSecrets: [{name: pull}]
config: {emulationVersion: "1.37", memoryThrottlingFactor: 0.8, memoryReservationPolicy: None, cgroupRoot: /kubelet, cgroupDriver: systemd, mode: DryRun, kubeletConfigFile: /var/lib/kubelet/config.yaml, metricsSecure: true, metricsCertDir: /etc/memqos-tls, containerMetrics: true}
metricsCertSecret: memqos-tls
extraArgs: [--feature-gates=MemoryQoS=false]
extraEnv: [{name: A, value: b}]
bundles: {enabled: true}
serviceAccount: {annotations: {a: b}}
daemonSetAnnotations: {a: b}
podAnnotations: {a: b}
podLabels: {a: b}
priorityClassQuota: {create: true}
nodeSelector: {a: b}
selinux: {enabled: true}
podMonitor: {enabled: true, labels: {release: prometheus}, interval: 30s, scrapeTimeout: 10s, authorization: {credentials: {name: token, key: token}}, relabelings: [{action: labeldrop, regex: pod}], metricRelabelings: [{action: drop, sourceLabels: [__name__], regex: go_.*}]}
prometheusRule: {enabled: true, labels: {release: prometheus}}
dashboards: {annotations: {grafana_folder: memqos}}
networkPolicy: {enabled: true, metricsFrom: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: monitoring}}}]}
openshift: {scc: true}
rbac: {metricsReader: true}
`

func TestSnapshots(t *testing.T) {
	for name, values := range map[string]string{"default": "{}", "everything": everything} {
		t.Run(name, func(t *testing.T) {
			golden(t, filepath.Join("testdata", name+".yaml"), render(t, values))
		})
	}
}

// What the agent refuses, helm refuses before it touches the cluster, and what helm
// lets through says to the agent what it says in values.yaml.
func TestConfiguration(t *testing.T) {
	for _, tc := range []struct {
		name, in string
		refused  bool
	}{
		{"nothing", "", false},
		{"gate off", "featureGates: {MemoryQoS: false}", false},
		{"unknown gate", "featureGates: {Other: true}", true},
		{"gate not bool", "featureGates: {MemoryQoS: maybe}", true},
		{"oldest", `emulationVersion: "1.22"`, false},
		{"newest", `emulationVersion: "1.37"`, false},
		{"version of none", `emulationVersion: "1.21"`, true},
		{"version unquoted", `emulationVersion: 1.30`, true},
		{"factor", "memoryThrottlingFactor: 0.5", false},
		{"factor 1", "memoryThrottlingFactor: 1", false},
		{"factor 0", "memoryThrottlingFactor: 0", true},
		{"factor above 1", "memoryThrottlingFactor: 1.1", true},
		{"factor as text", `memoryThrottlingFactor: "0.9"`, true},
		{"policy", `{emulationVersion: "1.36", memoryReservationPolicy: TieredReservation}`, false},
		{"policy of an older release", "memoryReservationPolicy: None", true},
		{"other policy", `{emulationVersion: "1.36", memoryReservationPolicy: HardReservation}`, true},
		{"root /", "cgroupRoot: /", false},
		{"root", "cgroupRoot: /kubelet", false},
		{"root below", "cgroupRoot: /a/b", false},
		{"relative root", "cgroupRoot: kubelet", true},
		{"root escapes", "cgroupRoot: /../x", true},
		{"root not clean", "cgroupRoot: /a//b", true},
		{"root with slash", "cgroupRoot: /a/", true},
		{"root is slice", "cgroupRoot: /kubelet.slice", true},
		{"driver", "cgroupDriver: cgroupfs", false},
		{"other driver", "cgroupDriver: openrc", true},
		{"resync", "resyncPeriod: 1m30s", false},
		{"resync hours", "resyncPeriod: 1h", false},
		{"resync too short", "resyncPeriod: 10ms", true},
		{"resync without unit", `resyncPeriod: "30"`, true},
		{"resync number", "resyncPeriod: 30", true},
		{"address", "metricsBindAddress: 127.0.0.1:9000", false},
		{"address v6", `metricsBindAddress: "[::1]:9000"`, false},
		{"no address", `{metricsBindAddress: "0", healthzBindAddress: "0"}`, false},
		{"containers", "containerMetrics: true", false},
		{"secure", "metricsSecure: true", false},
		{"secure with certificates", "{metricsSecure: true, metricsCertDir: /tls}", false},
		{"certificates by a relative path", "{metricsSecure: true, metricsCertDir: tls}", true},
		{"containers as text", `containerMetrics: "yes"`, true},
		{"profiles", "pprofBindAddress: 127.0.0.1:9813", false},
		{"profiles v6", `pprofBindAddress: "[::1]:9813"`, false},
		{"profiles for the network", `pprofBindAddress: ":9813"`, true},
		{"profiles on another address", `pprofBindAddress: 10.0.0.1:9813`, true},
		{"address without port", "metricsBindAddress: nowhere", true},
		{"port", `healthzBindAddress: ":65535"`, false},
		{"port too large", `healthzBindAddress: ":65536"`, true},
		{"port name", `healthzBindAddress: ":http"`, true},
		{"logging", "logging: {format: text, verbosity: 10}", false},
		{"log format", "logging: {format: xml}", true},
		{"verbosity", "logging: {verbosity: 11}", true},
		{"verbosity below", "logging: {verbosity: -1}", true},
		{"dry run", "mode: DryRun", false},
		{"other mode", "mode: Observe", true},
		{"rules", `{emulationVersion: "1.37", rules: [{name: batch, match: {namespaces: [batch, team-*], podSelector: {matchLabels: {app: web}}, qosClasses: [Burstable], priorityClassNames: [low]}, memoryThrottlingFactor: 0.5, memoryReservationPolicy: None, memoryHigh: Enabled, stallGuard: Disabled}, {name: rest, match: {}, exclude: true}]}`, false},
		{"rule without match", "rules: [{name: a, exclude: true}]", true},
		{"rule without name", "rules: [{match: {}}]", true},
		{"rule of no namespace", "rules: [{name: a, match: {namespaces: []}}]", true},
		{"rule of every namespace", `rules: [{name: a, match: {namespaces: ["*"]}}]`, true},
		{"rule of a class", "rules: [{name: a, match: {qosClasses: [guaranteed]}}]", true},
		{"rule with unknown field", "rules: [{name: a, match: {namespaceSelector: {}}}]", true},
		{"guard", "stallGuard: {enabled: false, stallShare: 0.5, window: 20s, hold: 1m}", false},
		{"guard share", "stallGuard: {stallShare: 0}", true},
		{"guard window", "stallGuard: {window: 10ms}", true},
		{"guard window too short", "stallGuard: {window: 1s}", true},
		{"rails", "rails: {systemReserve: 1Gi, reclaimMargin: 0.05}", false},
		{"rails below", "rails: {systemReserve: -1Gi}", true},
		{"rails margin", "rails: {reclaimMargin: 1}", true},
		{"restore", "restoreOnExit: Keep", false},
		{"other restore", "restoreOnExit: Never", true},
		{"bundles", "bundlePaths: [/run/<id>/config.json]", false},
		{"no bundles", "bundlePaths: []", false},
		{"bundle without id", "bundlePaths: [/run/config.json]", true},
		{"bundle with two ids", "bundlePaths: [/run/<id>/<id>]", true},
		{"bundle upwards", "bundlePaths: [/run/../<id>]", true},
		{"kubelet file", "kubeletConfigFile: /var/lib/kubelet/config.yaml", false},
		{"relative kubelet file", "kubeletConfigFile: config.yaml", true},
		{"state", "stateDir: /run/x", false},
		{"state /", "stateDir: /", true},
		{"unknown field", "throttling: 1", true},
		{"wrong case", "memorythrottlingfactor: 0.5", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			values, err := sigsyaml.YAMLToJSON([]byte(tc.in))
			if err != nil {
				t.Fatal(err)
			}
			if tc.in == "" {
				values = []byte("{}")
			}
			// Of the agent first: it has no defaults of the chart's beneath it.
			_, agentErr := config.Decode(withKind(t, values))
			if (agentErr != nil) != tc.refused {
				t.Errorf("the agent says %v, want refused %v", agentErr, tc.refused)
			}
			out, err := template(t, `{"config":`+string(values)+`}`)
			if tc.refused {
				if err == nil || !strings.Contains(err.Error(), "/config") {
					t.Errorf("helm says %v, want an error of the schema at /config", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var cm corev1.ConfigMap
			decode(t, out, "ConfigMap", &cm)
			got, err := config.Decode([]byte(cm.Data["config.yaml"]))
			if err != nil {
				t.Fatalf("%v in\n%s", err, cm.Data["config.yaml"])
			}
			want, err := config.Decode(withKind(t, values))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("the chart's configuration differs (-want +got):\n%s", diff)
			}
		})
	}
}

func withKind(t *testing.T, values []byte) []byte {
	t.Helper()
	out, err := sigsyaml.JSONToYAML(values)
	if err != nil {
		t.Fatal(err)
	}
	header := "apiVersion: " + config.APIVersion + "\nkind: " + config.Kind + "\n"
	if strings.TrimSpace(string(out)) == "{}" {
		return []byte(header)
	}
	return append([]byte(header), out...)
}

func TestRefusedValues(t *testing.T) {
	for _, tc := range []struct{ name, in, want string }{
		{"misspelt", "toleration: []", "toleration"},
		{"digest", "image: {digest: 'sha256:12'}", "/image/digest"},
		{"pull policy", "image: {pullPolicy: Sometimes}", "/image/pullPolicy"},
		{"runtime", "bundles: {runtime: docker}", "/bundles/runtime"},
		{"host path", "cgroup: {hostPath: sys}", "/cgroup/hostPath"},
		{"port", "networkPolicy: {apiServerPorts: [0]}", "/networkPolicy/apiServerPorts/0"},
		{"args", "extraArgs: [1]", "/extraArgs/0"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			_, err := template(t, tc.in)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want an error with %q", err, tc.want)
			}
		})
	}
}

// An API server before 1.31 drops recursiveReadOnly without a word, and the root file
// systems of other containers were writable.
func TestBundlesNeedRecursiveReadOnly(t *testing.T) {
	const values = "bundles: {enabled: true}"
	if _, err := template(t, values, "--kube-version", "1.30.9"); err == nil || !strings.Contains(err.Error(), "needs Kubernetes 1.31") {
		t.Errorf("1.30: got %v", err)
	}
	if _, err := template(t, "bundles: {enabled: true, recursiveReadOnly: Disabled}", "--kube-version", "1.30.9"); err != nil {
		t.Errorf("1.30, said on purpose: %v", err)
	}
	var ds appsv1.DaemonSet
	decode(t, render(t, values), "DaemonSet", &ds)
	n := 0
	for _, m := range ds.Spec.Template.Spec.Containers[0].VolumeMounts {
		if strings.HasPrefix(m.Name, "bundles-") {
			n++
			if !m.ReadOnly || m.RecursiveReadOnly == nil || *m.RecursiveReadOnly != corev1.RecursiveReadOnlyEnabled || *m.MountPropagation != corev1.MountPropagationNone {
				t.Errorf("%+v", m)
			}
		}
	}
	if n != 3 {
		t.Errorf("%d bundle directories, want 3", n)
	}
}

// The chart gives no more than deploy/rbac.yaml, under which the node tests run.
func TestRules(t *testing.T) {
	data, err := os.ReadFile("../../deploy/rbac.yaml")
	if err != nil {
		t.Fatal(err)
	}
	out := render(t, "{}")
	var want, got rbacv1.ClusterRole
	decode(t, string(data), "ClusterRole", &want)
	decode(t, out, "ClusterRole", &got)
	if diff := cmp.Diff(want.Rules, got.Rules); diff != "" {
		t.Errorf("ClusterRole (-deploy/rbac.yaml +chart):\n%s", diff)
	}
	decode(t, render(t, "config: {metricsSecure: true}"), "ClusterRole", &got)
	secure := slices.Concat(want.Rules, []rbacv1.PolicyRule{
		{APIGroups: []string{"authentication.k8s.io"}, Resources: []string{"tokenreviews"}, Verbs: []string{"create"}},
		{APIGroups: []string{"authorization.k8s.io"}, Resources: []string{"subjectaccessreviews"}, Verbs: []string{"create"}},
	})
	if diff := cmp.Diff(secure, got.Rules); diff != "" {
		t.Errorf("ClusterRole with secure metrics (-want +chart):\n%s", diff)
	}
	var wantRole, gotRole rbacv1.Role
	decode(t, string(data), "Role", &wantRole)
	decode(t, out, "Role", &gotRole)
	if diff := cmp.Diff(wantRole.Rules, gotRole.Rules); diff != "" {
		t.Errorf("Role (-deploy/rbac.yaml +chart):\n%s", diff)
	}
}

// Whatever else is turned on, the agent stays within these bounds: the values that
// could loosen them are the security contexts themselves.
func TestHardened(t *testing.T) {
	for name, values := range map[string]string{"default": "{}", "everything": everything} {
		t.Run(name, func(t *testing.T) {
			var ds appsv1.DaemonSet
			out := render(t, values)
			decode(t, out, "DaemonSet", &ds)
			var pod corev1.Pod
			decode(t, out, "Pod", &pod)
			for _, spec := range []corev1.PodSpec{ds.Spec.Template.Spec, pod.Spec} {
				if spec.HostNetwork || spec.HostPID || spec.HostIPC {
					t.Error("a namespace of the host")
				}
				if p := spec.SecurityContext.SeccompProfile; p == nil || p.Type != corev1.SeccompProfileTypeRuntimeDefault {
					t.Errorf("seccomp profile %v", p)
				}
				c := spec.Containers[0].SecurityContext
				want := &corev1.SecurityContext{
					RunAsUser: new(int64(0)), RunAsGroup: new(int64(0)), RunAsNonRoot: new(false), Privileged: new(false),
					AllowPrivilegeEscalation: new(false), ReadOnlyRootFilesystem: new(true),
					Capabilities:   &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
					SELinuxOptions: c.SELinuxOptions,
				}
				if diff := cmp.Diff(want, c); diff != "" {
					t.Errorf("security context (-want +got):\n%s", diff)
				}
				writable := map[string]bool{}
				for _, m := range spec.Containers[0].VolumeMounts {
					if !m.ReadOnly {
						writable[m.MountPath] = true
					}
				}
				want2 := map[string]bool{"/host/sys/fs/cgroup": true, "/run/memqos": true}
				if spec.RestartPolicy == corev1.RestartPolicyNever { // the test
					want2 = map[string]bool{}
				}
				if diff := cmp.Diff(want2, writable); diff != "" {
					t.Errorf("writable mounts (-want +got):\n%s", diff)
				}
			}
		})
	}
}

// An agent asks for the DaemonSet that runs it, and may.
func TestOwnDaemonSet(t *testing.T) {
	for _, values := range []string{"{}", "{fullnameOverride: other, namespaceOverride: elsewhere}"} {
		out := render(t, values)
		var ds appsv1.DaemonSet
		decode(t, out, "DaemonSet", &ds)
		want := "--daemonset=" + ds.Namespace + "/" + ds.Name
		if args := ds.Spec.Template.Spec.Containers[0].Args; !slices.Contains(args, want) {
			t.Errorf("%s: args %q lack %s", values, args, want)
		}
		var role rbacv1.Role
		decode(t, out, "Role", &role)
		if names := role.Rules[0].ResourceNames; role.Namespace != ds.Namespace || !slices.Equal(names, []string{ds.Name}) {
			t.Errorf("%s: the Role is about %s/%q", values, role.Namespace, names)
		}
	}
}

// OpenShift admits the volumes that the pods have, and no other.
func TestVolumesOfTheSCC(t *testing.T) {
	for _, values := range []string{"openshift: {scc: true}", everything} {
		out := render(t, values)
		var ds appsv1.DaemonSet
		decode(t, out, "DaemonSet", &ds)
		var scc map[string]any
		decode(t, out, "SecurityContextConstraints", &scc)
		kinds, _, err := unstructured.NestedStringSlice(scc, "volumes")
		if err != nil {
			t.Fatal(err)
		}
		admitted := map[string]bool{}
		for _, kind := range kinds {
			admitted[kind] = true
		}
		used := map[string]bool{"projected": true} // the token
		for _, v := range ds.Spec.Template.Spec.Volumes {
			used["hostPath"] = used["hostPath"] || v.HostPath != nil
			used["configMap"] = used["configMap"] || v.ConfigMap != nil
			if v.Secret != nil {
				used["secret"] = true
			}
		}
		if diff := cmp.Diff(used, admitted); diff != "" {
			t.Errorf("volumes (-used +admitted):\n%s", diff)
		}
	}
}

// A pod that the selector matches is the DaemonSet's to delete.
func TestSelector(t *testing.T) {
	out := render(t, "{podLabels: {a: b}, commonLabels: {c: d}}")
	var ds appsv1.DaemonSet
	var pod corev1.Pod
	decode(t, out, "DaemonSet", &ds)
	decode(t, out, "Pod", &pod)
	selector, err := metav1.LabelSelectorAsSelector(ds.Spec.Selector)
	if err != nil {
		t.Fatal(err)
	}
	if !selector.Matches(labels.Set(ds.Spec.Template.Labels)) {
		t.Errorf("%s does not match the agents", selector)
	}
	if selector.Matches(labels.Set(pod.Labels)) {
		t.Errorf("%s matches the pod of the helm test", selector)
	}
}

// A change that a running agent takes in restarts none; one that it refuses
// restarts all.
func TestRollout(t *testing.T) {
	pods := func(in string) (corev1.PodTemplateSpec, *config.MemoryQoSConfiguration) {
		var ds appsv1.DaemonSet
		var cm corev1.ConfigMap
		out := render(t, "config: {"+in+"}")
		decode(t, out, "DaemonSet", &ds)
		decode(t, out, "ConfigMap", &cm)
		c, err := config.Decode([]byte(cm.Data["config.yaml"]))
		if err != nil {
			t.Fatal(err)
		}
		return ds.Spec.Template, c
	}
	before, running := pods("")
	for _, in := range []string{
		"featureGates: {MemoryQoS: false}", `emulationVersion: "1.37"`, "memoryThrottlingFactor: 0.5", "mode: DryRun", "rules: [{name: a, match: {}}]",
		"stallGuard: {enabled: false}", "rails: {systemReserve: 1Gi}", "restoreOnExit: Keep", "cgroupRoot: /kubelet", "cgroupDriver: systemd",
		"bundlePaths: []", "stateDir: /x", "resyncPeriod: 1m", `metricsBindAddress: ":1"`, `healthzBindAddress: ":1"`, "pprofBindAddress: 127.0.0.1:1", "metricsSecure: true", "containerMetrics: true", `statusBindAddress: ":1"`, "logging: {format: text}", "logging: {verbosity: 4}",
	} {
		after, c := pods(in)
		refused := len(config.ValidateUpdate(running, c)) > 0
		if rolls := !cmp.Equal(before, after); rolls != refused {
			t.Errorf("%s: a running agent refuses it: %v, the chart rolls out: %v", in, refused, rolls)
		}
	}
}

func TestPortsFollowTheConfiguration(t *testing.T) {
	var ds appsv1.DaemonSet
	decode(t, render(t, `config: {metricsBindAddress: "0", healthzBindAddress: "0"}`), "DaemonSet", &ds)
	c := ds.Spec.Template.Spec.Containers[0]
	if len(c.Ports) != 0 || c.LivenessProbe != nil || c.ReadinessProbe != nil {
		t.Errorf("ports %v, probes %v %v, want none", c.Ports, c.LivenessProbe, c.ReadinessProbe)
	}
	decode(t, render(t, `config: {metricsBindAddress: "[::]:9000"}`), "DaemonSet", &ds)
	if got := ds.Spec.Template.Spec.Containers[0].Ports[0].ContainerPort; got != 9000 {
		t.Errorf("port %d", got)
	}
}

// panel is one of a Grafana dashboard.
type panel struct {
	ID         int
	Type       string
	Title      string
	GridPos    struct{ X, Y, W, H int }
	Datasource struct{ UID string }
	Targets    []struct{ RefID, Expr string }
}

// lint finds what Grafana would show wrongly: it has 24 columns, and knows a panel by its
// id and a query by its letter.
func (p *panel) lint(t *testing.T, dashboard string, before []panel) {
	t.Helper()
	if g := p.GridPos; p.ID == 0 || p.Title == "" || g.W <= 0 || g.H <= 0 || g.X < 0 || g.X+g.W > 24 {
		t.Errorf("%s: panel %d %q at %+v", dashboard, p.ID, p.Title, g)
	}
	for _, other := range before {
		g, o := p.GridPos, other.GridPos
		if p.ID == other.ID {
			t.Errorf("%s: %q and %q have the id %d", dashboard, p.Title, other.Title, p.ID)
		}
		if g.X < o.X+o.W && o.X < g.X+g.W && g.Y < o.Y+o.H && o.Y < g.Y+g.H {
			t.Errorf("%s: %q lies over %q", dashboard, p.Title, other.Title)
		}
	}
	if p.Type != "row" && p.Type != "text" && (!strings.HasPrefix(p.Datasource.UID, "$") || len(p.Targets) == 0) {
		t.Errorf("%s: %q has %d queries of datasource %q, want some, of the dashboard's variable", dashboard, p.Title, len(p.Targets), p.Datasource.UID)
	}
	letters := map[string]bool{}
	for _, target := range p.Targets {
		if target.RefID == "" || letters[target.RefID] {
			t.Errorf("%s: two queries %q of %q", dashboard, target.RefID, p.Title)
		}
		letters[target.RefID] = true
	}
}

// The alert on the DaemonSet knows it by the name that it has.
func TestAlertOfTheDaemonSet(t *testing.T) {
	for values, want := range map[string]string{
		"prometheusRule: {enabled: true}":                             `daemonset="memqos"`,
		"prometheusRule: {enabled: true}\nfullnameOverride: guardian": `daemonset="guardian"`,
	} {
		if out := render(t, values); !strings.Contains(out, want) {
			t.Errorf("%s: no alert on %s", values, want)
		}
	}
}

// A PodMonitor that could not scrape is refused.
func TestPodMonitorWithoutToken(t *testing.T) {
	const values = "podMonitor: {enabled: true}\nconfig: {metricsSecure: true}"
	if _, err := template(t, values); err == nil || !strings.Contains(err.Error(), "podMonitor.authorization is empty") {
		t.Errorf("got %v, want that the token is missing", err)
	}
}

// Prometheus understands what the dashboards ask.
func TestDashboardQueries(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(chartDir, "dashboards", "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	type rule struct {
		Record string `json:"record"`
		Expr   string `json:"expr"`
	}
	var rules []rule
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var dashboard struct {
			UID, Title string
			Panels     []panel
		}
		if err := json.Unmarshal(data, &dashboard); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		name := strings.TrimSuffix(filepath.Base(file), ".json")
		if dashboard.UID == "" || dashboard.Title == "" {
			t.Errorf("%s: uid %q, title %q", name, dashboard.UID, dashboard.Title)
		}
		for i, p := range dashboard.Panels {
			p.lint(t, name, dashboard.Panels[:i])
			for _, target := range p.Targets {
				expr := strings.NewReplacer("$__rate_interval", "5m", "$node", "n").Replace(target.Expr)
				rules = append(rules, rule{fmt.Sprintf("%s:panel_%d:%s", name, p.ID, target.RefID), expr})
			}
		}
	}
	if len(rules) == 0 {
		t.Fatal("no query found")
	}
	data, err := sigsyaml.Marshal(map[string]any{"groups": []any{map[string]any{"name": "dashboards", "rules": rules}}})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "rules.yaml")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(promtool(t), "check", "rules", file).CombinedOutput(); err != nil {
		t.Errorf("promtool: %v\n%s\n%s", err, out, data)
	}
}

// promtool is Prometheus's checker, which make chart fetches.
func promtool(t *testing.T) string {
	t.Helper()
	path := os.Getenv("PROMTOOL")
	if path == "" {
		t.Fatal("PROMTOOL names no promtool: run make chart")
	}
	return path
}
