package plugin

import (
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"

	"github.com/memqos/memqos/config"
	"github.com/memqos/memqos/memory"
	"github.com/memqos/memqos/qos"
	"github.com/memqos/memqos/status"
)

type diff struct {
	*flags
	all       bool
	emulation string
	factor    float64
	factorSet bool
	output    *output
}

func newDiff(f *flags) *cobra.Command {
	d := &diff{flags: f}
	cmd := &cobra.Command{
		Use:   "diff",
		Short: "Show what another release or factor would change on this cluster",
		Long: `diff plans the pods of each node by the configuration in use there and by one with
another emulationVersion or memoryThrottlingFactor, and shows the values that differ.
Without either it shows what memqos would change where it does not write: in a dry
run, or where values have drifted. It changes nothing.

It sends one request for the agents, one for the pods, and one for each node. The sums
of kubepods and the classes are shown with -A.`,
		Example: `  kubectl memqos diff -A --emulation-version 1.37
  kubectl memqos diff -n shop --memory-throttling-factor 0.7`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d.factorSet = cmd.Flags().Changed("memory-throttling-factor")
			c, err := d.cluster()
			if err != nil {
				return err
			}
			namespace, err := d.scope(d.all)
			if err != nil {
				return err
			}
			return d.run(contextOf(cmd), c, namespace, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	fs := cmd.Flags()
	fs.BoolVarP(&d.all, "all-namespaces", "A", false, "all namespaces")
	fs.StringVar(&d.emulation, "emulation-version", "", "Kubernetes release to reproduce, such as 1.37")
	fs.Float64Var(&d.factor, "memory-throttling-factor", 0, "factor of memory.high, above 0 and at most 1")
	cobra.CheckErr(cmd.RegisterFlagCompletionFunc("emulation-version", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		var all []string
		for _, v := range config.EmulationVersions() {
			all = append(all, string(v))
		}
		return all, cobra.ShellCompDirectiveNoFileComp
	}))
	d.output = addOutput(cmd, "json", "yaml")
	return cmd
}

// Difference is a value that would change.
type Difference struct {
	Node      string       `json:"node"`
	Level     qos.Level    `json:"level"`
	QOSClass  string       `json:"qosClass,omitempty"`
	Namespace string       `json:"namespace,omitempty"`
	Pod       string       `json:"pod,omitempty"`
	Container string       `json:"container,omitempty"`
	File      memory.File  `json:"file"`
	From      memory.Value `json:"from"`
	To        memory.Value `json:"to"`
	// Left says that To is no value that is written: the file is left alone.
	Left   bool   `json:"left,omitempty"`
	Reason string `json:"reason"`
}

func (d *diff) run(ctx context.Context, c *cluster, namespace string, out, errOut io.Writer) error {
	agents, err := c.agents(ctx, "")
	if err != nil {
		return err
	}
	pods, err := podsOf(ctx, c, namespace, "")
	if err != nil {
		return err
	}
	answers := c.ask(ctx, agents, "", "")
	found := []Difference{}
	for _, a := range answers {
		if a.Err != nil || a.Status.Agent == nil || a.Status.Agent.Idle != "" {
			continue
		}
		other, err := d.other(a.Status.Agent.Configuration)
		if err != nil {
			return err
		}
		own := slices.DeleteFunc(slices.Clone(pods), func(p corev1.Pod) bool { return p.Spec.NodeName != a.Node })
		if d.emulation == "" && !d.factorSet {
			found = append(found, undone(a.Status, namespace)...)
			continue
		}
		found = append(found, differ(a.Status, other, own, namespace == "")...)
	}
	if done, err := d.output.encode(out, found); done {
		return err
	}
	rows := [][]string{{"NODE", "POD", "CONTAINER", "FILE", "NOW", "WOULD BE", "WHY"}}
	for _, x := range found {
		who, to := "-", x.To.Human()
		switch {
		case x.Pod != "":
			who = x.Namespace + "/" + x.Pod
		case x.Level == qos.LevelNode:
			who = "(kubepods)"
		case x.Level == qos.LevelQOS:
			who = "(" + x.QOSClass + ")"
		}
		if x.Left {
			to = "-"
		}
		container := x.Container
		if container == "" {
			container = "-"
		}
		rows = append(rows, []string{x.Node, who, container, string(x.File), x.From.Human(), to, x.Reason})
	}
	if len(found) == 0 {
		if _, err := fmt.Fprintln(out, "Nothing would change."); err != nil {
			return err
		}
	} else if err := table(out, rows); err != nil {
		return err
	}
	return complain(errOut, answers)
}

// other is a node's configuration with what the flags say.
func (d *diff) other(c *config.MemoryQoSConfiguration) (*config.MemoryQoSConfiguration, error) {
	out := c.DeepCopy()
	if d.emulation != "" {
		out.EmulationVersion = config.EmulationVersion(d.emulation)
		if !out.EmulationVersion.HasReservationPolicy() {
			out.MemoryReservationPolicy = ""
		}
		if *c.MemoryThrottlingFactor == c.EmulationVersion.ThrottlingFactor() {
			out.MemoryThrottlingFactor = nil // a default becomes the other release's
		}
	}
	if d.factorSet {
		out.MemoryThrottlingFactor = &d.factor
	}
	config.SetDefaults(out)
	return out, config.Validate(out).ToAggregate()
}

// differ plans the pods of a node twice. sums says that they are all it has.
func differ(s *status.NodeStatus, other *config.MemoryQoSConfiguration, pods []corev1.Pod, sums bool) (found []Difference) {
	now, then := s.Plan(s.Agent.Configuration, pods), s.Plan(other, pods)
	// The agent says why it leaves a file alone that it would else write.
	type file struct {
		namespace, pod, container string
		memory.File
	}
	left := map[file]bool{}
	for _, g := range s.Cgroups {
		for f := range g.Reason {
			if _, wanted := g.Wanted[f]; !wanted {
				left[file{g.Namespace, g.Pod, g.Container, f}] = true
			}
		}
	}
	for i := range then.Cgroups {
		a, b := &now.Cgroups[i], &then.Cgroups[i]
		if (a.Level == qos.LevelNode || a.Level == qos.LevelQOS) && !sums {
			continue
		}
		for _, f := range memory.Files {
			from, had := a.Values[f]
			to, has := b.Values[f]
			if !had {
				from = defaultOf(f)
			}
			if !has {
				to = defaultOf(f)
			}
			if from == to || (b.Pod != "" && left[file{b.Namespace, b.Pod, b.Container, f}]) {
				continue
			}
			x := Difference{
				Node: s.Node, Level: b.Level, QOSClass: string(b.QOSClass), Namespace: b.Namespace, Pod: b.Pod, Container: b.Container,
				File: f, From: from, To: to, Left: !has, Reason: b.Reason[f],
			}
			if !has && x.Reason == "" {
				x.Reason = "that release leaves it alone: it gets back what was there"
			}
			found = append(found, x)
		}
	}
	return found
}

// undone are the values that are wanted now and not there.
func undone(s *status.NodeStatus, namespace string) (found []Difference) {
	for i := range s.Cgroups {
		g := &s.Cgroups[i]
		if namespace != "" && g.Namespace != namespace {
			continue
		}
		for _, file := range memory.Files {
			want, wanted := g.Wanted[file]
			if has, read := g.Actual[file]; wanted && read && has != want {
				found = append(found, Difference{
					Node: s.Node, Level: g.Level, QOSClass: string(g.QOSClass), Namespace: g.Namespace, Pod: g.Pod, Container: g.Container,
					File: file, From: has, To: want, Reason: g.Reason[file],
				})
			}
		}
	}
	return found
}

// defaultOf is what the kernel gives a new cgroup.
func defaultOf(file memory.File) memory.Value {
	if file == memory.High || file == memory.Max {
		return memory.Unlimited
	}
	return 0
}
