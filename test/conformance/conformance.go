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
	// Manifests are files of testdata.
	Manifests []string `json:"manifests"`
	// PlanFlags are those with which memqos plan is to give the same.
	PlanFlags []string `json:"planFlags"`
	Cgroups   Snapshot `json:"cgroups"`
}

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

// Plan runs memqos plan on the record's manifests, without a cluster. Of the node
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
	cmd := exec.CommandContext(ctx, "go", append([]string{
		"run", "./cmd/memqos", "plan", "-f", "-", "-o", "json", "--page-size", "4096", "--node-allocatable-memory", r.Cgroups["kubepods"]["memory.max"],
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
	// Differences, by the name of the cgroup.
	Differences map[string][]string
	// NotRunning are planned cgroups that the node did not have: containers that
	// had ended or not begun, and pods that were done.
	NotRunning []string
	// NotPlanned are cgroups of the node that the plan leaves alone.
	NotPlanned []string
}

// Compare compares every planned value with the recorded one.
func (r Record) Compare(plan Snapshot) Comparison {
	c := Comparison{Differences: map[string][]string{}}
	for _, name := range slices.Sorted(maps.Keys(r.Cgroups)) {
		planned, ok := plan[strings.TrimSuffix(name, CrunSuffix)] // crun's own cgroup has the container's values
		if !ok {
			c.NotPlanned = append(c.NotPlanned, name)
			continue
		}
		for _, file := range slices.Sorted(maps.Keys(planned)) {
			c.Files++
			if got := r.Cgroups[name][file]; got != planned[file] {
				c.Differences[name] = append(c.Differences[name], fmt.Sprintf("%s is planned as %s, the kubelet has %s", file, planned[file], got))
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

// CrunSuffix marks, in a Snapshot, the cgroup that crun makes within a scope.
const CrunSuffix = ", crun's own"
