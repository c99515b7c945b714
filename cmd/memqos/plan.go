package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/memqos/memqos/cgroup"
	"github.com/memqos/memqos/config"
	"github.com/memqos/memqos/memory"
	"github.com/memqos/memqos/qos"
)

// planFlags are the flags of memqos plan. What is not set comes from the file
// named by config, or is a default.
type planFlags struct {
	file             string
	config           string
	emulationVersion string
	factor           float64
	allocatable      string
	capacity         string
	pageSize         int64
	cgroupDriver     string
	cgroupRootName   string
	output           output
}

func newPlanCommand() *cobra.Command {
	var f planFlags
	cmd := &cobra.Command{
		Use:   "plan -f FILE|-",
		Short: "Show offline what would be written for some pods, and why",
		Long: `plan reads pods and prints which value memqos would write into which file, and
how each came about. It touches nothing and needs no cluster.

It reads Pod, PodList and List, as JSON or multi-document YAML: manifests, or what
"kubectl get pods -o yaml" prints. As the API server does, it takes the limit for
a memory request that is not given, completes pod-level resources, and takes the
overhead from a RuntimeClass in the same input. The pods are taken to be those of
one node: the sums for kubepods and the Burstable class are over all of them. The
rules of --config go by the labels, namespace and priorityClassName that stand in
the input; the annotations memqos.io/... of a pod count.`,
		Example: `  memqos plan -f pod.yaml --node-allocatable-memory 30Gi
  kubectl get pods -A --field-selector spec.nodeName=worker-1 -o yaml | memqos plan -f - -o json
  memqos plan -f pod.yaml --emulation-version 1.22 --memory-throttling-factor 0.6`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd) },
	}
	fs := cmd.Flags()
	fs.StringVarP(&f.file, "filename", "f", "", "file with pods, or - for standard input (required)")
	fs.StringVar(&f.config, "config", "", "file with a MemoryQoSConfiguration; the flags below override it")
	fs.StringVar(&f.emulationVersion, "emulation-version", "", fmt.Sprintf("Kubernetes release to reproduce, %s to %s (default %q)", config.EmulationVersions()[0], config.EmulationVersions()[len(config.EmulationVersions())-1], config.DefaultEmulationVersion))
	fs.Float64Var(&f.factor, "memory-throttling-factor", 0, "factor in the formula of memory.high, greater than 0 and at most 1 (default that of the release: 0.8 up to 1.26, then 0.9)")
	fs.StringVar(&f.allocatable, "node-allocatable-memory", "", "memory that all pods of the node may use, as a quantity: capacity less systemReserved and kubeReserved; what kubepods' memory.max holds. Without it memory.high of containers without a limit is left out")
	fs.StringVar(&f.capacity, "node-memory-capacity", "", "memory of the node's machine, as a quantity. Without it rails.systemReserve has no effect")
	fs.Int64Var(&f.pageSize, "page-size", int64(os.Getpagesize()), "page size of the node's kernel in bytes")
	fs.StringVar(&f.cgroupDriver, "cgroup-driver", string(config.Systemd), "the kubelet's cgroupDriver, for the paths: systemd or cgroupfs")
	fs.StringVar(&f.cgroupRootName, "cgroup-root-name", "/", `the kubelet's cgroupRoot, for the paths: "/", or "/kubelet" on kind`)
	f.output.add(cmd)
	cobra.CheckErr(cmd.MarkFlagRequired("filename"))
	return cmd
}

func (f *planFlags) run(cmd *cobra.Command) error {
	c, err := config.Load(f.config, func(c *config.MemoryQoSConfiguration) {
		if f.emulationVersion != "" {
			c.EmulationVersion = config.EmulationVersion(f.emulationVersion)
		}
		if cmd.Flags().Changed("memory-throttling-factor") {
			c.MemoryThrottlingFactor = &f.factor
		}
		if cmd.Flags().Changed("cgroup-driver") || c.CgroupDriver == "" {
			c.CgroupDriver = config.CgroupDriver(f.cgroupDriver)
		}
		if cmd.Flags().Changed("cgroup-root-name") || c.CgroupRoot == "" {
			c.CgroupRoot = f.cgroupRootName
		}
	})
	if err != nil {
		return err
	}
	node := qos.Node{PageSize: f.pageSize}
	if node.PageSize < 1 || node.PageSize&(node.PageSize-1) != 0 {
		return fmt.Errorf("--page-size %d: want a power of two, such as 4096", f.pageSize)
	}
	if node.Allocatable, err = bytesFlag("node-allocatable-memory", f.allocatable); err != nil {
		return err
	}
	if node.Capacity, err = bytesFlag("node-memory-capacity", f.capacity); err != nil {
		return err
	}

	pods, notes, err := f.read(cmd.InOrStdin())
	if err != nil {
		return err
	}
	policy := qos.NewPolicy(c, node)
	plan := policy.PlanFor(pods)
	fillPaths(&plan, pods, cgroup.NewLayout(c.CgroupDriver, c.CgroupRoot))
	notes = append(notes, annotationNotes(policy, pods)...)
	for _, note := range append(notes, planNotes(pods, &plan)...) {
		if _, err := fmt.Fprintln(cmd.ErrOrStderr(), "note: "+note); err != nil {
			return err
		}
	}
	return f.output.print(cmd.OutOrStdout(), plan, func() table { return planTable(&plan) })
}

// bytesFlag reads a flag that is a quantity of bytes; 0 is not given.
func bytesFlag(name, text string) (int64, error) {
	if text == "" {
		return 0, nil
	}
	q, err := resource.ParseQuantity(text)
	if err != nil || q.Sign() <= 0 {
		return 0, fmt.Errorf("--%s %q: want a quantity of bytes above 0, such as 30Gi", name, text)
	}
	return q.Value(), nil
}

func (f *planFlags) read(stdin io.Reader) (pods []corev1.Pod, notes []string, err error) {
	in, name := stdin, "standard input"
	if f.file != "-" {
		file, err := os.Open(f.file)
		if err != nil {
			return nil, nil, err
		}
		defer file.Close() //nolint:errcheck // read only
		in, name = file, f.file
	}
	pods, notes, err = readPods(in)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", name, err)
	}
	for i := range pods {
		qos.SetDefaults(&pods[i])
	}
	return pods, notes, nil
}

// fillPaths gives each cgroup of a plan its path, as far as it can be known: a
// pod without a uid and a container without an id have none yet.
func fillPaths(plan *qos.Plan, pods []corev1.Pod, layout cgroup.Layout) {
	byName := map[string]*corev1.Pod{}
	for i := range pods {
		byName[pods[i].Namespace+"/"+pods[i].Name] = &pods[i]
	}
	for i := range plan.Cgroups {
		c := &plan.Cgroups[i]
		pod := byName[c.Namespace+"/"+c.Pod]
		switch c.Level {
		case qos.LevelNode:
			c.Cgroup = layout.Root
		case qos.LevelQOS:
			c.Cgroup = layout.QOS(c.QOSClass)
		case qos.LevelPod:
			c.Cgroup = podPath(layout, pod)
		case qos.LevelContainer:
			if dir := podPath(layout, pod); dir != "" {
				c.Cgroup = layout.Container(dir, cgroup.ContainerIDs(pod)[c.Container])
			}
		}
	}
}

func podPath(layout cgroup.Layout, pod *corev1.Pod) string {
	uid, _ := cgroup.PodUID(pod)
	dir, err := layout.Pod(qos.Class(pod), uid)
	if err != nil {
		return ""
	}
	return dir
}

// annotationNotes says which annotations have no effect because of what they
// hold.
func annotationNotes(policy qos.Policy, pods []corev1.Pod) []string {
	var notes []string
	for i := range pods {
		_, errs := policy.For(&pods[i])
		for _, err := range errs {
			notes = append(notes, fmt.Sprintf("pod %s/%s: %v", pods[i].Namespace, pods[i].Name, err))
		}
	}
	return notes
}

// planNotes says what a reader of the plan should know and cannot see in it.
func planNotes(pods []corev1.Pod, plan *qos.Plan) []string {
	var notes []string
	nodes := map[string]bool{}
	for i := range pods {
		nodes[pods[i].Spec.NodeName] = true
	}
	delete(nodes, "")
	if len(nodes) > 1 {
		notes = append(notes, fmt.Sprintf("the pods are of %d nodes, and the sums for kubepods are over all of them; take one node's pods with --field-selector spec.nodeName=NAME", len(nodes)))
	}
	left := 0
	for i := range plan.Cgroups {
		if plan.Cgroups[i].Level == qos.LevelContainer && plan.Cgroups[i].Reason[memory.High] == qos.AllocatableUnknown {
			left++
		}
	}
	if left > 0 {
		notes = append(notes, fmt.Sprintf("memory.high of %d containers without a limit follows from the node's size: give --node-allocatable-memory", left))
	}
	return notes
}

func planTable(plan *qos.Plan) table {
	low := slices.ContainsFunc(plan.Cgroups, func(c qos.Cgroup) bool { return has(c.Values, memory.Low) })
	files := columns(low)
	head := []string{"LEVEL", "QOS", "POD", "CONTAINER"}
	for _, file := range files {
		head = append(head, strings.ToUpper(string(file)))
	}
	t := table{append(head, "WHY")}
	for i := range plan.Cgroups {
		c := &plan.Cgroups[i]
		row := names(c.Level, string(c.QOSClass), c.Namespace, c.Pod, c.Container, c.Cgroup)
		row = append(row, cells(c.Values, files)...)
		t = append(t, append(row, why(c)))
	}
	return t
}

// why is the reason that tells most of a cgroup: that of memory.high at a
// container, else that of the file which protects; and of a rail that binds.
func why(c *qos.Cgroup) string {
	switch {
	case c.Level == qos.LevelContainer && slices.Contains(c.Rails, qos.ReclaimMargin):
		return c.Reason[memory.High] + "; memory.min: " + c.Reason[memory.Min]
	case c.Level == qos.LevelContainer, c.Values[memory.High] != memory.Unlimited && has(c.Values, memory.High):
		return c.Reason[memory.High]
	case c.Values[memory.Min] == 0 && c.Values[memory.Low] > 0:
		return c.Reason[memory.Low]
	}
	return c.Reason[memory.Min]
}
