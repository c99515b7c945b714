// Package conformance owns the comparison of memqos's plan with what kubelets
// whose MemoryQoS gate was on made of the same pods. What the kubelets wrote was
// read from the kernel of real nodes, and is recorded in testdata by make record.
package conformance

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/memqos/memqos/qos"
)

// Snapshot is what the memory.* files of a node hold, by the name of the cgroup
// in the cluster ("container default/web/app") instead of its path: uids and
// container ids are others on every run.
type Snapshot map[string]map[string]string

// Count is the number of cgroups of one kind ("container", "pod", "sandbox").
func (s Snapshot) Count(kind string) (n int) {
	for name := range s {
		if strings.HasPrefix(name, kind+" ") {
			n++
		}
	}
	return n
}

// Record is what one kubelet made of some manifests.
type Record struct {
	// Kubelet is its version, Node says what else is particular of the node.
	Kubelet string `json:"kubelet"`
	Node    string `json:"node"`
	// Host is what the node ran on and with, and APIServer the version of that.
	Host      Host   `json:"host"`
	APIServer string `json:"apiServer"`
	// Manifests are files of testdata.
	Manifests []string `json:"manifests"`
	// Seed is that of the pods that Random added, RandomPods how many those are.
	Seed       uint64 `json:"seed"`
	RandomPods int    `json:"randomPods"`
	// PlanFlags are those with which memqos plan is to give the same.
	PlanFlags []string `json:"planFlags"`
	Cgroups   Snapshot `json:"cgroups"`
	// Resizes are what became of pods that were then resized in place.
	Resizes []Resize `json:"resizes,omitempty"`
}

// Host is what a node ran on.
type Host struct {
	Kernel       string `json:"kernel"`
	Systemd      string `json:"systemd"`
	Runtime      string `json:"runtime"`
	OCIRuntime   string `json:"ociRuntime"`
	CgroupDriver string `json:"cgroupDriver"`
	CgroupRoot   string `json:"cgroupRoot"`
}

// Resize is a resize in place: the pods of a manifest were resized to what the
// next one says of them. Cgroups are those of these pods, and kubepods and the
// Burstable class.
type Resize struct {
	Manifest string   `json:"manifest"`
	Cgroups  Snapshot `json:"cgroups"`
}

// FirstResize is the manifest of the pods that are then resized.
const FirstResize = "resize-0.yaml"

// Resized is the record as it is after the i-th resize.
func (r Record) Resized(i int) Record {
	r.Manifests = slices.Clone(r.Manifests)
	for j, name := range r.Manifests {
		if name == FirstResize {
			r.Manifests[j] = r.Resizes[i].Manifest
		}
	}
	r.Cgroups, r.Resizes = r.Resizes[i].Cgroups, nil
	return r
}

// Parity is the configuration without the rails, which keep less than a kubelet does.
const Parity = "parity.yaml"

// MinPods is how many pods with a cgroup a record has at least.
const MinPods = 40

// Dir is the folder of the manifests and records, wherever a test runs.
func Dir() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "testdata")
}

// Manifest reads a manifest of testdata.
func Manifest(name string) ([]byte, error) { return os.ReadFile(filepath.Join(Dir(), name)) }

// Records reads every record, by its file's name.
func Records() (map[string]Record, error) {
	files, err := filepath.Glob(filepath.Join(Dir(), "kubelet-*.json"))
	if err != nil {
		return nil, err
	}
	records := map[string]Record{}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		var r Record
		if err := json.Unmarshal(data, &r); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		records[strings.TrimSuffix(filepath.Base(file), ".json")] = r
	}
	return records, nil
}

// Write puts a record into testdata.
func (r Record) Write() error {
	data, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(Dir(), "kubelet-"+r.Kubelet+"-"+r.Node+".json"), append(data, '\n'), 0o644)
}

// Plan runs memqos plan on the record's pods, without a cluster. Of the node
// it knows the page size, and node allocatable, which a kubelet writes into
// kubepods' memory.max.
func (r Record) Plan(ctx context.Context) (Snapshot, error) {
	var in []string
	for _, name := range r.Manifests {
		data, err := Manifest(name)
		if err != nil {
			return nil, err
		}
		in = append(in, string(data))
	}
	random, err := Random(r.Seed, r.Kubelet, r.RandomPods)
	if err != nil {
		return nil, err
	}
	in = append(in, string(random))
	cmd := exec.CommandContext(ctx, "go", append([]string{
		"run", "./cmd/memqos", "plan", "-f", "-", "-o", "json", "--config", filepath.Join(Dir(), Parity), "--page-size", "4096", "--node-allocatable-memory", r.Cgroups["kubepods"]["memory.max"],
	}, r.PlanFlags...)...)
	cmd.Dir = filepath.Join(Dir(), "..", "..", "..")
	cmd.Stdin = strings.NewReader(strings.Join(in, "\n---\n"))
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("memqos plan: %w\n%s", err, stderr.String())
	}
	var plan qos.Plan
	if err := json.Unmarshal(out, &plan); err != nil {
		return nil, err
	}
	s := Snapshot{}
	for i := range plan.Cgroups {
		c := &plan.Cgroups[i]
		values := map[string]string{}
		for file, value := range c.Values {
			values[string(file)] = value.String()
		}
		s[name(c)] = values
	}
	return s, nil
}

func name(c *qos.Cgroup) string {
	switch c.Level {
	case qos.LevelNode:
		return "kubepods"
	case qos.LevelQOS:
		return strings.ToLower(string(c.QOSClass))
	case qos.LevelPod:
		return "pod " + c.Namespace + "/" + c.Pod
	}
	return "container " + c.Namespace + "/" + c.Pod + "/" + c.Container
}

// Comparison is how a plan stands to a record.
type Comparison struct {
	// Files is the number of values that were compared.
	Files int
	// Differences, by the name of the cgroup; Deviations are those with a reason.
	Differences, Deviations map[string][]string
	// NotRunning are planned cgroups that the node did not have: containers that
	// had ended or not begun, and pods that were done.
	NotRunning []string
	// NotPlanned are cgroups of the node that the plan leaves alone.
	NotPlanned []string
}

// Compare compares every planned value with the recorded one.
func (r Record) Compare(plan Snapshot) Comparison {
	c := Comparison{Differences: map[string][]string{}, Deviations: map[string][]string{}}
	for _, name := range slices.Sorted(maps.Keys(r.Cgroups)) {
		planned, ok := plan[strings.TrimSuffix(name, CrunSuffix)] // crun's own cgroup has the container's values
		if !ok {
			c.NotPlanned = append(c.NotPlanned, name)
			continue
		}
		for _, file := range slices.Sorted(maps.Keys(planned)) {
			c.Files++
			got := r.Cgroups[name][file]
			if got == planned[file] {
				continue
			}
			difference := fmt.Sprintf("%s is planned as %s, the kubelet has %s", file, planned[file], got)
			if why, ok := r.deviation(name, file); ok {
				c.Deviations[name] = append(c.Deviations[name], difference+" ("+why+")")
			} else {
				c.Differences[name] = append(c.Differences[name], difference)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(plan)) {
		if _, ok := r.Cgroups[name]; !ok {
			c.NotRunning = append(c.NotRunning, name)
		}
	}
	return c
}

// Add takes in what was compared after a resize.
func (c *Comparison) Add(other Comparison) {
	c.Files += other.Files
	for name, d := range other.Differences {
		c.Differences[name] = append(c.Differences[name], d...)
	}
	for name, d := range other.Deviations {
		c.Deviations[name] = append(c.Deviations[name], d...)
	}
}

// deviation is the reason why memqos and the kubelet may disagree on a file, as
// the table of deviations in docs/architecture.md has it. There is none as long
// as nothing was resized.
func (r Record) deviation(cgroup, file string) (why string, ok bool) {
	if slices.Contains(r.Manifests, FirstResize) {
		return "", false
	}
	for _, d := range deviations {
		if strings.TrimSuffix(cgroup, CrunSuffix) == d.cgroup && file == d.file {
			return d.why, true
		}
	}
	return "", false
}

// deviations are of pods that exist for nothing else, so that they hide no other
// difference.
var deviations = []struct{ cgroup, file, why string }{
	{"pod default/resize-requests", "memory.low", "in-place resize that changes requests alone"},
	{"pod default/resize-limitless", "memory.low", "in-place resize that changes requests alone"},
	{"container default/resize-pod-level/open", "memory.high", "resize of a container without a memory limit in a pod that has one"},
}

// Expected is what the node with memqos is to hold: what the kubelet had, and the
// plan's values where memqos deviates with a reason.
func (r Record) Expected(plan Snapshot) Snapshot {
	expected := Snapshot{}
	for name, files := range r.Cgroups {
		expected[name] = maps.Clone(files)
		for file, value := range plan[strings.TrimSuffix(name, CrunSuffix)] {
			if _, ok := r.deviation(name, file); ok {
				expected[name][file] = value
			}
		}
	}
	return expected
}

// CrunSuffix marks, in a Snapshot, the cgroup that crun makes within a scope.
const CrunSuffix = ", crun's own"
