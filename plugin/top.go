package plugin

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/memqos/memqos/memory"
	"github.com/memqos/memqos/page"
	"github.com/memqos/memqos/qos"
	"github.com/memqos/memqos/status"
)

type top struct {
	*flags
	all      bool
	selector string
	node     string
	sortBy   string
	watch    bool
	interval time.Duration
	output   *output
}

func newTop(f *flags) *cobra.Command {
	t := &top{flags: f}
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Show what containers use against memory.min, memory.high and memory.max",
		Long: `top shows each container with what it uses. In the bar, # is used, | the end of
what is protected (memory.min or memory.low), > memory.high; the end is memory.max,
or without one the greatest of the others.

It sends one request for the list of agents and one for each node, 32 at a time and
beside those the ones that are late or not Ready; -l takes one more.`,
		Example: `  kubectl memqos top -A
  kubectl memqos top -n shop -l app=web --watch
  kubectl memqos top -A --node worker-1 -o wide`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return t.run(contextOf(cmd), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	fs := cmd.Flags()
	fs.BoolVarP(&t.all, "all-namespaces", "A", false, "all namespaces")
	fs.StringVarP(&t.selector, "selector", "l", "", "labels of the pods")
	fs.StringVar(&t.node, "node", "", "one node")
	fs.StringVar(&t.sortBy, "sort-by", "verdict", "verdict (what asks for somebody first, then the fullest), usage, full (share of memory.high or memory.max) or name")
	fs.BoolVarP(&t.watch, "watch", "w", false, "again and again, also after an error that may pass, until interrupted")
	fs.DurationVar(&t.interval, "interval", 2*time.Second, "time between two looks with --watch")
	t.output = addOutput(cmd, "wide", "json", "yaml")
	return cmd
}

func (t *top) run(ctx context.Context, out, errOut io.Writer) error {
	if !slices.Contains([]string{"verdict", "usage", "full", "name"}, t.sortBy) {
		return fmt.Errorf("--sort-by %s: want verdict, usage, full or name", t.sortBy)
	}
	if _, err := labels.Parse(t.selector); err != nil {
		return fmt.Errorf("--selector %s: %w", t.selector, err)
	}
	if t.interval <= 0 {
		return fmt.Errorf("--interval %s: want a time above 0, such as 2s", t.interval)
	}
	c, err := t.cluster()
	if err != nil {
		return err
	}
	namespace, err := t.scope(t.all)
	if err != nil {
		return err
	}
	if !t.watch {
		return t.once(ctx, c, namespace, out, errOut, coloured(out))
	}
	for worked := false; ; {
		// A look takes its time: what was there stays until it is over.
		var shown, notes bytes.Buffer
		err := t.once(ctx, c, namespace, &shown, &notes, coloured(out))
		if ctx.Err() != nil {
			return nil
		}
		if err != nil && !worked && refused(err) {
			return err
		}
		worked = worked || err == nil
		if err != nil {
			fmt.Fprintln(&notes, "memqos: "+oneLine(err.Error()))
		}
		if isTerminal(out) {
			if _, err := io.WriteString(out, "\x1b[H\x1b[2J"); err != nil {
				return err
			}
		}
		if _, err := shown.WriteTo(out); err != nil {
			return err
		}
		if _, err := notes.WriteTo(errOut); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(t.interval):
		}
	}
}

// refused reports whether the API server takes a request for wrong or forbids it. It
// forbids what it allowed before for a moment after its start.
func refused(err error) bool {
	return apierrors.IsBadRequest(err) || apierrors.IsInvalid(err) || apierrors.IsUnauthorized(err) || apierrors.IsForbidden(err)
}

func (t *top) once(ctx context.Context, c *cluster, namespace string, out, errOut io.Writer, colour bool) error {
	agents, err := c.agents(ctx, t.node)
	if err != nil {
		return err
	}
	var selected map[string]bool
	if t.selector != "" {
		pods, err := podsOf(ctx, c, namespace, t.selector)
		if err != nil {
			return err
		}
		selected = map[string]bool{}
		for i := range pods {
			selected[key(&pods[i])] = true
		}
	}
	answers := c.ask(ctx, agents, "", "")
	var lines []line
	for _, a := range answers {
		if a.Err != nil {
			continue
		}
		a.Status.Cgroups = slices.DeleteFunc(a.Status.Cgroups, func(g status.Cgroup) bool {
			return g.Pod != "" && ((namespace != "" && g.Namespace != namespace) || (selected != nil && !selected[g.Namespace+"/"+g.Pod]))
		})
		for i := range a.Status.Cgroups {
			g := &a.Status.Cgroups[i]
			// Without bundles nobody tells a sandbox from a container that is new.
			named := g.Container != "" || *t.output == "wide"
			if g.Level == qos.LevelContainer && g.Container != status.Sandbox && g.Pod != "" && named {
				lines = append(lines, line{a.Node, g})
			}
		}
	}
	if done, err := t.output.encode(out, listOf(answers)); done {
		return err
	}
	sortLines(lines, t.sortBy)
	if err := table(out, topTable(lines, t.all, *t.output == "wide", colour)); err != nil {
		return err
	}
	return complain(errOut, answers)
}

func podsOf(ctx context.Context, c *cluster, namespace, selector string) ([]corev1.Pod, error) {
	list, err := c.clients.Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		return nil, fmt.Errorf("list pods: %w", err)
	}
	return list.Items, nil
}

// line is a container of a node.
type line struct {
	node string
	*status.Cgroup
}

// full is the share of memory.high, or else of memory.max, that is in use.
func (l line) full() float64 {
	top := min(l.Actual[memory.High], l.Actual[memory.Max])
	if top == 0 || top == memory.Unlimited {
		return 0
	}
	return float64(l.UsageBytes) / float64(top)
}

func sortLines(lines []line, by string) {
	slices.SortStableFunc(lines, func(a, b line) int {
		name := cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Pod, b.Pod), strings.Compare(a.Container, b.Container), strings.Compare(a.Cgroup.Cgroup, b.Cgroup.Cgroup))
		switch by {
		case "usage":
			return cmp.Or(cmp.Compare(b.UsageBytes, a.UsageBytes), name)
		case "full":
			return cmp.Or(cmp.Compare(b.full(), a.full()), name)
		case "name":
			return name
		}
		return cmp.Or(a.Verdict.Severity()-b.Verdict.Severity(), cmp.Compare(b.full(), a.full()), name)
	})
}

func topTable(lines []line, namespaces, wide, colour bool) [][]string {
	// In columns with colours the heads have the default one: a column is as wide as all
	// of its bytes.
	head := []string{"POD", "CONTAINER", "USAGE", "MIN", "HIGH", "MAX", paint("", defaultColour, colour), paint("VERDICT", defaultColour, colour)}
	if namespaces {
		head = append([]string{"NAMESPACE"}, head...)
	}
	if wide {
		head = append(head, "NODE", "LOW", "OVER HIGH", "STALLED")
	}
	rows := [][]string{head}
	for _, l := range lines {
		name := l.Container
		if name == "" {
			name = "(unknown)"
		}
		row := []string{l.Pod, name, page.Size(usage(l.Cgroup)), held(l.Cgroup, memory.Min), held(l.Cgroup, memory.High), held(l.Cgroup, memory.Max), bar(l.Cgroup, 20, colour), verdict(l.Verdict, colour)}
		if namespaces {
			row = append([]string{l.Namespace}, row...)
		}
		if wide {
			over, stalled := "-", "-"
			if l.Throttled != nil {
				over, stalled = fmt.Sprint(l.Throttled.HighEvents), fmt.Sprintf("%.1fs", float64(l.Throttled.FullUsec)/1e6)
			}
			row = append(row, l.node, held(l.Cgroup, memory.Low), over, stalled)
		}
		rows = append(rows, row)
	}
	return rows
}

func usage(c *status.Cgroup) memory.Value {
	return memory.Value(min(c.UsageBytes, math.MaxInt64-1))
}

// held is what a file holds, and - where there is no cgroup.
func held(c *status.Cgroup, file memory.File) string {
	if v, ok := c.Actual[file]; ok {
		return v.Human()
	}
	return "-"
}

// bar draws usage against the values of a cgroup.
func bar(c *status.Cgroup, width int, colour bool) string {
	least, high, most := max(c.Actual[memory.Min], c.Actual[memory.Low]), c.Actual[memory.High], c.Actual[memory.Max]
	scale := max(usage(c), 1)
	for _, v := range []memory.Value{least, high, most} {
		if v != memory.Unlimited {
			scale = max(scale, v)
		}
	}
	at := func(v memory.Value) int { return min(int(float64(v)/float64(scale)*float64(width)), width-1) }
	cells := []byte(strings.Repeat(".", width))
	for i := range int(math.Round(float64(usage(c)) / float64(scale) * float64(width))) {
		cells[i] = '#'
	}
	if least > 0 && least != memory.Unlimited {
		cells[at(least)] = '|'
	}
	if _, read := c.Actual[memory.High]; read && high != memory.Unlimited {
		cells[at(high)] = '>'
	}
	return paint("["+string(cells)+"]", "34", colour)
}

const defaultColour = "39"

// paint gives a text a colour, by its code of two digits, if colours are wanted.
func paint(s, code string, colour bool) string {
	if !colour {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

func verdict(v status.Verdict, colour bool) string {
	code := map[status.Verdict]string{status.Fulfilled: "32", status.Drifted: "31", status.Relaxed: "31", status.Pending: "33"}[v]
	if code == "" {
		code = defaultColour
	}
	return paint(string(v), code, colour)
}
