package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/memqos/memqos/memory"
	"github.com/memqos/memqos/qos"
	"github.com/memqos/memqos/status"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func run(t *testing.T, stdin string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	cmd := newCommand()
	var out, errOut bytes.Buffer
	cmd.SetArgs(args)
	cmd.SetIn(strings.NewReader(stdin))
	cmd.SetOut(&out)
	cmd.SetErr(&errOut)
	err = cmd.Execute()
	return out.String(), errOut.String(), err
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", name, diff)
	}
}

// The whole output for one input, in each format.
func TestPlanOutput(t *testing.T) {
	for _, format := range outputs {
		stdout, stderr, err := run(t, "", "plan", "-f", "testdata/pods.yaml", "--node-allocatable-memory", "2Gi", "--page-size", "4096", "-o", format)
		if err != nil {
			t.Fatal(err)
		}
		golden(t, "plan."+format, stdout)
		if want := "document 5: v1 Service web is passed over"; !strings.Contains(stderr, want) {
			t.Errorf("stderr is %q, want %q in it", stderr, want)
		}
	}
}

// A release with tiered protection, and pod-level resources: the table has a
// column for memory.low.
func TestPlanTieredGolden(t *testing.T) {
	for _, format := range []string{"table", "json"} {
		stdout, _, err := run(t, "", "plan", "-f", "testdata/pods-tiered.yaml", "--emulation-version", "1.37", "--node-allocatable-memory", "2Gi", "--page-size", "4096", "-o", format)
		if err != nil {
			t.Fatal(err)
		}
		golden(t, "plan-tiered."+format, stdout)
	}
}

// Rules and annotations: each decision is named.
func TestPlanRulesGolden(t *testing.T) {
	for _, format := range []string{"table", "json"} {
		stdout, stderr, err := run(t, "", "plan", "-f", "testdata/pods-rules.yaml", "--config", "testdata/config-rules.yaml",
			"--node-allocatable-memory", "2Gi", "--node-memory-capacity", "350Mi", "--page-size", "4096", "-o", format)
		if err != nil {
			t.Fatal(err)
		}
		golden(t, "plan-rules."+format, stdout)
		if stderr != "" {
			t.Errorf("stderr is %q", stderr)
		}
	}
}

// inspect shows memory.low where it is wanted, or is there although it is not.
func TestInspectTableLow(t *testing.T) {
	for _, tc := range []struct {
		name           string
		wanted, actual memory.Values
		want           string
	}{
		{"none", memory.Values{memory.Min: 4096}, memory.Values{memory.Min: 4096, memory.Low: 0, memory.High: memory.Unlimited}, "WANT MIN|HIGH|MAX|HAS MIN|HIGH|MAX|USAGE|VERDICT 4Ki|-|-|4Ki|max|-|0|Fulfilled"},
		{"wanted", memory.Values{memory.Low: 4096}, memory.Values{memory.Low: 4096}, "WANT MIN|LOW|HIGH|MAX|HAS MIN|LOW|HIGH|MAX|USAGE|VERDICT -|4Ki|-|-|-|4Ki|-|-|0|Fulfilled"},
		{"somebody else's", memory.Values{memory.Min: 0}, memory.Values{memory.Low: 4096}, "WANT MIN|LOW|HIGH|MAX|HAS MIN|LOW|HIGH|MAX|USAGE|VERDICT 0|-|-|-|-|4Ki|-|-|0|Fulfilled"},
	} {
		table := inspectTable(&status.NodeStatus{Cgroups: []status.Cgroup{{Level: qos.LevelNode, Wanted: tc.wanted, Actual: tc.actual, Verdict: status.Fulfilled}}})
		if got := strings.Join(table[0][4:], "|") + " " + strings.Join(table[1][4:], "|"); got != tc.want {
			t.Errorf("%s:\ngot  %s\nwant %s", tc.name, got, tc.want)
		}
	}
}

func planJSON(t *testing.T, stdin string, args ...string) qos.Plan {
	t.Helper()
	stdout, _, err := run(t, stdin, append([]string{"plan", "-f", "-", "-o", "json", "--page-size", "4096"}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	var plan qos.Plan
	if err := json.Unmarshal([]byte(stdout), &plan); err != nil {
		t.Fatal(err)
	}
	return plan
}

const pod = `{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "d"},
  "spec": {"containers": [{"name": "c", "resources": {"requests": {"memory": "64Mi"}, "limits": {"memory": "128Mi"}}}]}}`

func TestPlanFlags(t *testing.T) {
	for _, tc := range []struct {
		name string
		args []string
		want string
	}{
		{"default", nil, "memory.min=67108864 memory.high=127504384 memory.max=134217728"},
		{"1.22 has a factor of its own", []string{"--emulation-version", "1.22"}, "memory.min=67108864 memory.high=107372544 memory.max=134217728"},
		{"factor", []string{"--memory-throttling-factor", "0.5"}, "memory.min=67108864 memory.high=100663296 memory.max=134217728"},
		{"factor 1", []string{"--memory-throttling-factor", "1"}, "memory.min=67108864 memory.high=134217728 memory.max=134217728"},
		{"page", []string{"--page-size", "65536"}, "memory.min=67108864 memory.high=127467520 memory.max=134217728"},
		{"tiered", []string{"--emulation-version", "1.36"}, "memory.min=0 memory.low=67108864 memory.high=127504384 memory.max=134217728"},
		{"no reservation", []string{"--config", "testdata/config-none.yaml"}, "memory.min=0 memory.low=0 memory.high=127504384 memory.max=134217728"},
		{"config file", []string{"--config", "testdata/config.yaml"}, "memory.min=67108864 memory.high=80527360 memory.max=134217728"},
		{"flag over config file", []string{"--config", "testdata/config.yaml", "--emulation-version", "1.27"}, "memory.min=67108864 memory.high=107372544 memory.max=134217728"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			plan := planJSON(t, pod, tc.args...)
			if got := plan.Cgroups[len(plan.Cgroups)-1].Values.String(); got != tc.want {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
		})
	}
}

// A Pod, a List and a PodList, as JSON and as YAML, are all the same.
func TestPlanInputs(t *testing.T) {
	bare := strings.Replace(pod, `"apiVersion": "v1", "kind": "Pod", `, "", 1)
	asYAML, err := yaml.JSONToYAML([]byte(pod))
	if err != nil {
		t.Fatal(err)
	}
	want := planJSON(t, pod)
	for name, in := range map[string]string{
		"List":      `{"apiVersion": "v1", "kind": "List", "items": [` + pod + `]}`,
		"PodList":   `{"apiVersion": "v1", "kind": "PodList", "items": [` + bare + `]}`,
		"YAML":      string(asYAML),
		"documents": "# nothing\n---\n---\n" + string(asYAML) + "---\n# nothing\n",
	} {
		if diff := cmp.Diff(want, planJSON(t, in)); diff != "" {
			t.Errorf("%s (-Pod +%s):\n%s", name, name, diff)
		}
	}
}

func TestPlanPaths(t *testing.T) {
	running := strings.Replace(pod, `"namespace": "d"`, `"namespace": "d", "uid": "6a1f3b52-7a3c-4a2c-9a55-0d3d0d0d0d0d"`, 1)
	id := strings.Repeat("a", 64)
	running = strings.TrimSuffix(running, "}") + `, "status": {"qosClass": "Burstable", "containerStatuses": [{"name": "c", "containerID": "containerd://` + id + `"}]}}`
	var got []string
	for _, c := range planJSON(t, running, "--cgroup-root-name", "/kubelet").Cgroups {
		got = append(got, c.Cgroup)
	}
	const root = "kubelet.slice/kubelet-kubepods.slice"
	const slice = root + "/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod6a1f3b52_7a3c_4a2c_9a55_0d3d0d0d0d0d.slice"
	want := []string{root, root + "/kubelet-kubepods-burstable.slice", slice, slice + "/cri-containerd-" + id + ".scope"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// Each error names the document, the field or flag, and the value.
func TestPlanErrors(t *testing.T) {
	replace := func(from, to string) string { return strings.Replace(pod, from, to, 1) }
	for _, tc := range []struct {
		name  string
		stdin string
		args  []string
		want  string
	}{
		{"nothing", "", nil, "standard input: holds no pod"},
		{"only others", "apiVersion: v1\nkind: Service\nmetadata: {name: s}\n", nil, "v1 Service s is passed over"},
		{"no object", "- a\n- b\n", nil, "document 1"},
		{"no kind", "a: b\n", nil, "it has no kind"},
		{"not yaml", "a: [\n", nil, "document 1"},
		{"quantity", replace("64Mi", "64MiB"), nil, "document 1 (pod p)"},
		{"negative", replace("64Mi", "-1"), nil, `spec.containers[0].resources.requests[memory]: Invalid value: "-1"`},
		{"request above limit", replace("64Mi", "1Gi"), nil, `must not be above the limit 128Mi`},
		{"no container", `{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}}`, nil, "spec.containers: Required"},
		{"no name", replace(`"name": "p", `, ""), nil, "metadata.name: Required"},
		{"item", `{"apiVersion": "v1", "kind": "List", "items": [` + pod + `, {"apiVersion": "v1", "kind": "Pod"}]}`, nil, "document 1, item 1"},
		{"version", pod, []string{"--emulation-version", "1.9"}, "emulationVersion: Unsupported value"},
		{"factor", pod, []string{"--memory-throttling-factor", "0"}, "memoryThrottlingFactor: Invalid value: 0"},
		{"policy of another release", pod, []string{"--config", "testdata/config-none.yaml", "--emulation-version", "1.35"}, "memoryReservationPolicy: Invalid value"},
		{"driver", pod, []string{"--cgroup-driver", "x"}, "cgroupDriver: Unsupported value"},
		{"root", pod, []string{"--cgroup-root-name", "x"}, "cgroupRoot: Invalid value"},
		{"page", pod, []string{"--page-size", "1000"}, "--page-size 1000: want a power of two"},
		{"allocatable", pod, []string{"--node-allocatable-memory", "lots"}, `--node-allocatable-memory "lots"`},
		{"allocatable 0", pod, []string{"--node-allocatable-memory", "0"}, `--node-allocatable-memory "0"`},
		{"capacity", pod, []string{"--node-memory-capacity", "-1"}, `--node-memory-capacity "-1"`},
		{"format", pod, []string{"-o", "xml"}, "want one of table, json, yaml"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			stdout, _, err := run(t, tc.stdin, append([]string{"plan", "-f", "-"}, tc.args...)...)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got error %v, want %q in it", err, tc.want)
			}
			if stdout != "" {
				t.Errorf("printed %q beside the error", stdout)
			}
		})
	}
	if _, _, err := run(t, "", "plan"); err == nil || !strings.Contains(err.Error(), "filename") {
		t.Errorf("without -f: %v", err)
	}
}

// A pod has the overhead of its RuntimeClass, wherever that stands in the input.
func TestPlanRuntimeClass(t *testing.T) {
	in := strings.Replace(pod, `"spec": {`, `"spec": {"runtimeClassName": "kata", `, 1) + `
---
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: kata}
handler: kata
overhead: {podFixed: {memory: 10Mi}}
`
	if got, want := planJSON(t, in).Cgroups[2].Values.String(), "memory.min=77594624 memory.max=144703488"; got != want {
		t.Errorf("pod: got %s, want %s", got, want)
	}
}

func TestPlanNotes(t *testing.T) {
	one := strings.Replace(pod, `"spec": {`, `"spec": {"nodeName": "a", `, 1)
	two := strings.NewReplacer(`"nodeName": "a"`, `"nodeName": "b"`, `"limits": {"memory": "128Mi"}`, `"limits": {}`).Replace(one)
	_, stderr, err := run(t, `{"apiVersion": "v1", "kind": "List", "items": [`+one+`,`+two+`]}`, "plan", "-f", "-")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"the pods are of 2 nodes", "memory.high of 1 containers", "--node-allocatable-memory"} {
		if !strings.Contains(stderr, want) {
			t.Errorf("stderr is %q, want %q in it", stderr, want)
		}
	}
}

// An annotation that has no effect is named.
func TestPlanAnnotationNotes(t *testing.T) {
	_, stderr, err := run(t, strings.Replace(pod, `"name": "p"`, `"name": "p", "annotations": {"memqos.io/exclude": "yes"}`, 1), "plan", "-f", "-")
	if err != nil {
		t.Fatal(err)
	}
	if want := `note: pod d/p: annotation memqos.io/exclude: "yes" is passed over: want "true" or "false"` + "\n"; stderr != want {
		t.Errorf("stderr is %q, want %q", stderr, want)
	}
}

func TestPrintable(t *testing.T) {
	if got := status.Printable("a\x1b[31mb\nc\u009bd é"); got != "a?[31mb?c?d é" {
		t.Errorf("got %q", got)
	}
}

// Whatever is read as pods can be planned for.
func FuzzPlan(f *testing.F) {
	f.Add([]byte(pod))
	f.Add([]byte("apiVersion: v1\nkind: PodList\nitems: [{metadata: {name: x}, spec: {containers: [{name: c}]}}]\n"))
	f.Add([]byte(`{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"overhead": {"memory": "1.5Mi"},
  "resources": {"limits": {"memory": "2Gi"}}, "initContainers": [{"name": "i", "restartPolicy": "Always"}], "containers": [{"name": "c", "resources": {"requests": {"memory": "64Mi"}}}]},
  "status": {"phase": "Running", "resources": {"limits": {"memory": "1Gi"}}, "containerStatuses": [{"name": "c", "resources": {"requests": {"memory": "32Mi"}}}]}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, version := range []string{"1.22", "1.27", "1.37"} {
			cmd := newCommand()
			cmd.SetArgs([]string{"plan", "-f", "-", "-o", "json", "--node-allocatable-memory", "1Gi", "--page-size", "4096", "--emulation-version", version})
			cmd.SetIn(bytes.NewReader(data))
			var out bytes.Buffer
			cmd.SetOut(&out)
			cmd.SetErr(&bytes.Buffer{})
			if cmd.Execute() != nil {
				return
			}
			var plan qos.Plan
			if err := json.Unmarshal(out.Bytes(), &plan); err != nil {
				t.Fatalf("%s printed %q: %v", version, out.String(), err)
			}
			for _, c := range plan.Cgroups {
				for file, v := range c.Values {
					if v < 0 || v != memory.Unlimited && v%4096 != 0 {
						t.Errorf("%s: %s of the %s is %d", version, file, c.Level, v)
					}
				}
			}
		}
	})
}
