package conformance

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Table renders, as Markdown, what was compared: a row a pod shape, a column a
// record, and in each cell the number of equal values or the differences.
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
same manifests ran on real nodes under kubelets with the MemoryQoS gate on, and what their
kernels then held is compared with what ` + "`memqos plan`" + ` gives, for each file that memqos
manages in each cgroup of the pod. "Left alone" are cgroups that memqos does not write to;
the kubelet had left them at the kernel's defaults too. A shape that the node did not have is
empty.

`)
	b.WriteString("| shape |")
	for _, c := range columns {
		fmt.Fprintf(&b, " %s, %s |", records[c].Kubelet, records[c].Node)
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(columns)) + "\n")
	for _, s := range slices.Sorted(maps.Keys(shapes)) {
		fmt.Fprintf(&b, "| %s |", s)
		for _, c := range columns {
			fmt.Fprintf(&b, " %s |", cell(records[c], comparisons[c], s))
		}
		b.WriteString("\n")
	}
	b.WriteString("| **all** |")
	for _, c := range columns {
		fmt.Fprintf(&b, " %d equal, %d differ |", comparisons[c].Files-different(comparisons[c]), different(comparisons[c]))
	}
	b.WriteString("\n")
	return b.String()
}

func different(c Comparison) (n int) {
	for _, d := range c.Differences {
		n += len(d)
	}
	return n
}

// cell is what one record says of one shape.
func cell(r Record, c Comparison, of string) string {
	cgroups, alone, differences := 0, 0, []string(nil)
	for _, name := range slices.Sorted(maps.Keys(r.Cgroups)) {
		if shape(name) != of {
			continue
		}
		cgroups++
		if slices.Contains(c.NotPlanned, name) {
			alone++
		}
		differences = append(differences, c.Differences[name]...)
	}
	switch {
	case cgroups == 0:
		return ""
	case len(differences) > 0:
		return "deviates: " + strings.Join(differences, "; ")
	case alone == cgroups:
		return fmt.Sprintf("%d left alone", cgroups)
	}
	return "equal"
}

// shape is the row that a cgroup belongs to: the pod, or its level.
func shape(name string) string {
	level, pod, ok := strings.Cut(name, " ")
	if !ok || level == "sandbox" || level == "conmon" {
		return level
	}
	pod, _, _ = strings.Cut(pod[strings.IndexByte(pod, '/')+1:], "/")
	return "pod " + strings.TrimSuffix(pod, CrunSuffix)
}
