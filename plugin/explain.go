package plugin

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/memqos/memqos/memory"
	"github.com/memqos/memqos/page"
	"github.com/memqos/memqos/qos"
	"github.com/memqos/memqos/status"
)

// factors are those that explain shows beside the one in use.
var factors = []float64{0.5, 0.6, 0.7, 0.8, 0.9, 1}

func newExplain(f *flags) *cobra.Command {
	var out *output
	cmd := &cobra.Command{
		Use:   "explain pod NAME",
		Short: "Say of a pod why each value is what it is, and what happened",
		Long: `explain says of each container and file of a pod what is wanted and why, what the
file holds, since when, who wrote it lately; whether the stall guard has raised
memory.high; how often the container was held back at it; out-of-memory kills with
their cause; and what another memoryThrottlingFactor would make of memory.high.

Who wrote: memqos; reset, the kernel's default, which comes of systemd and of a
runtime's update; foreign, any other value. It sends three requests.`,
		Example: `  kubectl memqos explain pod web-0 -n shop
  kubectl memqos explain pod/web-0`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := podName(args)
			if err != nil {
				return err
			}
			c, err := f.cluster()
			if err != nil {
				return err
			}
			namespace, err := f.scope(false)
			if err != nil {
				return err
			}
			return explain(contextOf(cmd), c, namespace, name, *out, cmd.OutOrStdout())
		},
		ValidArgsFunction: f.completePods,
	}
	out = addOutput(cmd, "json", "yaml")
	return cmd
}

func podName(args []string) (string, error) {
	kind, name, slash := strings.Cut(args[0], "/")
	switch {
	case len(args) == 2 && !slash:
		name = args[1]
	case len(args) == 1 && slash:
	default:
		return "", fmt.Errorf("%s: want pod NAME or pod/NAME", strings.Join(args, " "))
	}
	if kind != "pod" && kind != "pods" && kind != "po" {
		return "", fmt.Errorf("%s: only a pod can be explained", kind)
	}
	return name, nil
}

func explain(ctx context.Context, c *cluster, namespace, name string, format output, out io.Writer) error {
	pod, err := c.clients.Pods(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	if pod.Spec.NodeName == "" {
		return fmt.Errorf("pod %s/%s is on no node yet", namespace, name)
	}
	agents, err := c.agents(ctx, pod.Spec.NodeName)
	if err != nil {
		return err
	}
	a := c.ask(ctx, agents[:1], namespace, name)[0]
	if a.Err != nil {
		return fmt.Errorf("node %s: %w", a.Node, a.Err)
	}
	if done, err := format.encode(out, a.Status); done {
		return err
	}
	_, err = io.WriteString(out, explanation(pod, a.Status))
	return err
}

// explanation is the text.
func explanation(pod *corev1.Pod, s *status.NodeStatus) string {
	var b strings.Builder
	say := func(format string, args ...any) {
		fmt.Fprintf(&b, format+"\n", args...)
	}
	say("Pod %s on node %s, %s", key(pod), s.Node, qos.Class(pod))
	if a := s.Agent; a != nil {
		if a.Idle != "" {
			say("  The node is not served: %s: %s", a.Idle, status.Printable(a.IdleMessage))
			return b.String()
		}
		c := a.Configuration
		say("  as a kubelet %s would, factor %v, mode %s", c.EmulationVersion, *c.MemoryThrottlingFactor, c.Mode)
	}
	found := false
	for i := range s.Cgroups {
		g := &s.Cgroups[i]
		if g.Namespace != pod.Namespace || g.Pod != pod.Name || g.Container == status.Sandbox {
			continue
		}
		found = true
		explainCgroup(say, s, g)
	}
	if !found {
		say("  It has no cgroup: it is done, or the agent does not know it yet.")
		return b.String()
	}
	for _, k := range s.Kills {
		if k.Namespace == pod.Namespace && k.Pod == pod.Name {
			say("Killed for memory %s ago (%s), %s: %s", ago(s.Time, k.Time), k.Cause, status.Printable(k.Container), status.Printable(k.Message))
		}
	}
	explainFactors(say, pod, s)
	return b.String()
}

func explainCgroup(say func(string, ...any), s *status.NodeStatus, g *status.Cgroup) {
	name := "The pod"
	if g.Level == qos.LevelContainer {
		name = "Container " + status.Printable(g.Container)
		if g.Container == "" {
			name = "A cgroup that is left alone, " + g.Cgroup
		}
	}
	since := ""
	if g.Since != nil {
		since = " for " + ago(s.Time, *g.Since)
	}
	if g.Actual == nil {
		say("%s: %s, no cgroup yet", name, g.Verdict)
		return
	}
	say("%s: %s%s, uses %s", name, g.Verdict, since, page.Size(usage(g)))
	for _, file := range memory.Files {
		want, wanted := g.Wanted[file]
		reason := status.Printable(g.Reason[file])
		switch has := g.Actual[file]; {
		case !wanted && reason == "":
			continue
		case !wanted:
			say("  %-11s %s; %s", file, has.Human(), reason)
		case want == has:
			say("  %-11s %s = %s", file, has.Human(), reason)
		default:
			say("  %-11s %s, WANTED %s = %s", file, has.Human(), want.Human(), reason)
		}
	}
	if r := g.Relaxed; r != nil {
		say("  relaxed by the stall guard from %s, %s ago. %s", r.Planned.Human(), ago(s.Time, r.Since), status.Printable(r.Why))
	}
	if t := g.Throttled; t != nil {
		say("  throttled: %d times over memory.high in the last %s; waited for memory %.1f s, all tasks at once %.1f s", t.HighEvents, ago(s.Time, t.From), float64(t.SomeUsec)/1e6, float64(t.FullUsec)/1e6)
	}
	for _, c := range g.Changes {
		times := ""
		if c.Count > 1 {
			times = fmt.Sprintf(", %d times", c.Count)
		}
		say("  %s ago %s: %s to %s by %s%s", ago(s.Time, c.Time), c.File, c.From.Human(), c.To.Human(), c.By, times)
	}
}

// explainFactors says what other factors would make of memory.high.
func explainFactors(say func(string, ...any), pod *corev1.Pod, s *status.NodeStatus) {
	if s.Agent == nil || s.Agent.Configuration == nil {
		return
	}
	plain := pod.DeepCopy()
	delete(plain.Annotations, qos.AnnotationFactor)
	rows := map[string][]string{}
	var order []string
	for _, factor := range factors {
		c := s.Agent.Configuration.DeepCopy()
		c.MemoryThrottlingFactor = &factor
		for i := range c.Rules {
			c.Rules[i].MemoryThrottlingFactor = nil
		}
		for _, g := range s.Plan(c, []corev1.Pod{*plain}).Cgroups {
			high, managed := g.Values[memory.High]
			if g.Level != qos.LevelContainer || !managed {
				continue
			}
			if rows[g.Container] == nil {
				order = append(order, g.Container)
			}
			rows[g.Container] = append(rows[g.Container], fmt.Sprintf("%v: %s", factor, high.Human()))
		}
	}
	for _, name := range order {
		say("memory.high of %s by memoryThrottlingFactor  %s", status.Printable(name), strings.Join(rows[name], "  "))
	}
}

// ago is the time between two moments, for people.
func ago(now, then time.Time) string {
	d := max(now.Sub(then), 0).Round(time.Second)
	switch {
	case d < time.Minute:
		return d.String()
	case d < time.Hour:
		if s, ok := strings.CutSuffix(d.String(), "m0s"); ok {
			return s + "m"
		}
		return d.String()
	}
	return strings.TrimSuffix(d.Round(time.Minute).String(), "0s")
}
