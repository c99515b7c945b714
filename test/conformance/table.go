package conformance

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Table renders, as Markdown, what was run and what was compared: a row a pod
// shape, a column a record, and in each cell that all values were equal, or how
// they were not.
func Table(records map[string]Record, comparisons map[string]Comparison) string {
	columns := slices.Sorted(maps.Keys(records))
	shapes := map[string]bool{}
	for _, r := range records {
		for cgroup := range r.Cgroups {
			shapes[shape(cgroup)] = true
		}
	}
	var b strings.Builder
	b.WriteString(`# Conformance

Made by ` + "`make update`" + ` from ` + "`test/conformance/testdata`" + `, which ` + "`make record`" + ` fills: the
same pods ran on real nodes under kubelets with the MemoryQoS gate on, and what their kernels
then held is compared with what ` + "`memqos plan`" + ` gives, for each file that memqos manages in
each cgroup of the pod. On a second such node ` + "`make e2e-matrix`" + ` runs memqos, beside the
same kubelet with the gate off, and compares every file with the first node's.

## Nodes

| name | kubelet | API server | kernel | systemd | runtime | cgroup driver, root | pods | containers | random pods' seed |
|---|---|---|---|---|---|---|---|---|---|
`)
	for _, c := range columns {
		r := records[c]
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s, %s | %s, `%s` | %d | %d | %d |\n", title(r), r.Kubelet, r.APIServer, r.Host.Kernel, r.Host.Systemd,
			r.Host.Runtime, r.Host.OCIRuntime, r.Host.CgroupDriver, r.Host.CgroupRoot, r.Cgroups.Count("pod"), r.Cgroups.Count("container"), r.Seed)
	}
	b.WriteString(`
## Pods

"Left alone" are cgroups that memqos does not write to; the kubelet had left them at the
kernel's defaults too. "Deviates" is a deviation of docs/architecture.md. A shape that the
node did not have is empty. Pods whose name begins with resize were then resized in place,
several times, and compared after each.

`)
	b.WriteString("| shape |")
	for _, c := range columns {
		fmt.Fprintf(&b, " %s |", title(records[c]))
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(columns)) + "\n")
	for _, s := range slices.Sorted(maps.Keys(shapes)) {
		fmt.Fprintf(&b, "| %s |", s)
		for _, c := range columns {
			fmt.Fprintf(&b, " %s |", cell(records[c], comparisons[c], s))
		}
		b.WriteString("\n")
	}
	b.WriteString("| **all values** |")
	for _, c := range columns {
		differ, deviate := count(comparisons[c].Differences), count(comparisons[c].Deviations)
		fmt.Fprintf(&b, " %d equal, %d deviate with reason, %d differ |", comparisons[c].Files-differ-deviate, deviate, differ)
	}
	b.WriteString("\n")
	return b.String()
}

func title(r Record) string { return r.Kubelet + ", " + r.Node }

func count(differences map[string][]string) (n int) {
	for _, d := range differences {
		n += len(d)
	}
	return n
}

// cell is what one record says of one shape.
func cell(r Record, c Comparison, of string) string {
	cgroups, alone := 0, 0
	var differences, deviations []string
	for _, name := range slices.Sorted(maps.Keys(r.Cgroups)) {
		if shape(name) != of {
			continue
		}
		cgroups++
		if slices.Contains(c.NotPlanned, name) {
			alone++
		}
		differences = append(differences, c.Differences[name]...)
		deviations = append(deviations, c.Deviations[name]...)
	}
	switch {
	case cgroups == 0:
		return ""
	case len(differences) > 0:
		return "differs: " + strings.Join(differences, "; ")
	case len(deviations) > 0:
		return "deviates: " + strings.Join(deviations, "; ")
	case alone == cgroups:
		return fmt.Sprintf("%d left alone", cgroups)
	}
	return "equal"
}

// shape is the row that a cgroup belongs to: the pod, the random pods, or its
// level.
func shape(name string) string {
	level, pod, ok := strings.Cut(name, " ")
	if !ok || level == "sandbox" || level == "conmon" {
		return level
	}
	namespace, pod, _ := strings.Cut(pod, "/")
	if namespace == "random" {
		return fmt.Sprintf("%d random pods", RandomPods)
	}
	pod, _, _ = strings.Cut(pod, "/")
	return "pod " + strings.TrimSuffix(pod, CrunSuffix)
}
