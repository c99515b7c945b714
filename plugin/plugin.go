package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/printers"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/memqos/memqos/status"
)

// flags are those of every command.
type flags struct {
	kube      *genericclioptions.ConfigFlags
	namespace string
	selector  string
	timeout   time.Duration
	version   string
}

// New returns the commands. name is how they are called: kubectl-memqos, or kubectl
// as a command of memqos.
func New(name, version string) *cobra.Command {
	f := &flags{kube: genericclioptions.NewConfigFlags(true), version: version}
	cmd := &cobra.Command{
		Use:   name,
		Short: "Show for a cluster what memqos does, and why",
		Long: `kubectl memqos asks the agents of a cluster, through the API server's pod proxy,
and shows what they tell. It changes nothing. It needs list on pods and get on
pods/proxy in the agents' namespace (the ClusterRole memqos-viewer), beside get on
pods for explain, list on pods for diff and -l, list on nodes for doctor; and agents
that serve their status on the pod's network: config.statusBindAddress ":9812".

  kubectl memqos top               usage against memory.min, high and max
  kubectl memqos explain pod NAME  why each value, and what happened
  kubectl memqos diff              what another release or factor would change
  kubectl memqos doctor            is each node fit`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
	}
	if name == "kubectl-memqos" {
		cmd.Annotations = map[string]string{cobra.CommandDisplayNameAnnotation: "kubectl memqos"}
	}
	f.kube.AddFlags(cmd.PersistentFlags())
	fs := cmd.PersistentFlags()
	fs.StringVar(&f.namespace, "agent-namespace", "memqos", "namespace of the agents")
	fs.StringVar(&f.selector, "agent-selector", "app.kubernetes.io/name=memqos,app.kubernetes.io/component=agent", "labels of the agents' pods")
	fs.DurationVar(&f.timeout, "node-timeout", 5*time.Second, "time that each node has to answer; one whose agent is not Ready has 1s at most")
	cmd.AddCommand(newTop(f), newExplain(f), newDiff(f), newDoctor(f))
	return cmd
}

// cluster connects.
func (f *flags) cluster() (*cluster, error) {
	c, err := f.kube.ToRESTConfig()
	if err != nil {
		return nil, err
	}
	c.QPS = -1 // what is in flight is bounded
	c.UserAgent = "kubectl-memqos/" + f.version
	clients, err := corev1client.NewForConfig(c)
	if err != nil {
		return nil, err
	}
	return &cluster{clients: clients, namespace: f.namespace, selector: f.selector, timeout: f.timeout, patience: patience}, nil
}

// scope is the namespace that is asked about; empty is all.
func (f *flags) scope(all bool) (string, error) {
	if all {
		return "", nil
	}
	namespace, _, err := f.kube.ToRawKubeConfigLoader().Namespace()
	return namespace, err
}

func contextOf(cmd *cobra.Command) context.Context {
	if ctx := cmd.Context(); ctx != nil {
		return ctx
	}
	return context.Background()
}

// output is the value of a flag -o.
type output string

func addOutput(cmd *cobra.Command, formats ...string) *output {
	o := new(output)
	cmd.Flags().StringVarP((*string)(o), "output", "o", "", "output format: "+strings.Join(formats, ", "))
	cobra.CheckErr(cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp)))
	before := cmd.PreRunE
	cmd.PreRunE = func(cmd *cobra.Command, args []string) error {
		if *o != "" && !slices.Contains(formats, string(*o)) {
			return fmt.Errorf("-o %s: want one of %s", *o, strings.Join(formats, ", "))
		}
		if before != nil {
			return before(cmd, args)
		}
		return nil
	}
	return o
}

// encode writes v if the output is for machines, and reports whether it is.
func (o output) encode(w io.Writer, v any) (bool, error) {
	switch o {
	case "json":
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return true, e.Encode(v)
	case "yaml":
		data, err := yaml.Marshal(v)
		if err == nil {
			_, err = w.Write(data)
		}
		return true, err
	}
	return false, nil
}

// table writes rows of cells, the header first, as kubectl does.
func table(w io.Writer, rows [][]string) error {
	tw := printers.GetNewTabWriter(w)
	for _, row := range rows {
		for i := range row {
			if !strings.HasPrefix(row[i], "\x1b") { // our own colours
				row[i] = status.Printable(row[i])
			}
		}
		if _, err := fmt.Fprintln(tw, strings.Join(row, "\t")); err != nil {
			return err
		}
	}
	return tw.Flush()
}

// List is the output of several nodes.
type List struct {
	APIVersion string              `json:"apiVersion"`
	Kind       string              `json:"kind"`
	Items      []status.NodeStatus `json:"items"`
	// Unanswered are the nodes whose agents did not answer, with the reason.
	Unanswered map[string]string `json:"unanswered,omitempty"`
}

func listOf(answers []answer) List {
	l := List{APIVersion: status.APIVersion, Kind: "NodeStatusList", Items: []status.NodeStatus{}}
	for _, a := range answers {
		if a.Err == nil {
			l.Items = append(l.Items, *a.Status)
			continue
		}
		if l.Unanswered == nil {
			l.Unanswered = map[string]string{}
		}
		l.Unanswered[a.Node] = a.Err.Error()
	}
	return l
}

// complain names on w the nodes that did not answer. None at all is an error.
func complain(w io.Writer, answers []answer) error {
	failed := 0
	for _, a := range answers {
		switch {
		case a.Err != nil:
			failed++
			if _, err := fmt.Fprintf(w, "node %s: %s\n", a.Node, status.Printable(a.Err.Error())); err != nil {
				return err
			}
		case a.Status.Agent != nil && a.Status.Agent.Idle != "":
			if _, err := fmt.Fprintf(w, "node %s: not served: %s\n", a.Node, status.Printable(a.Status.Agent.Idle)); err != nil {
				return err
			}
		}
	}
	if failed == len(answers) {
		return errors.New("no agent answers")
	}
	return nil
}

// isTerminal reports whether w is one.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// coloured reports whether colours are wanted: see no-color.org.
func coloured(w io.Writer) bool {
	return isTerminal(w) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

// completePods completes the name of a pod.
func (f *flags) completePods(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return []string{"pod"}, cobra.ShellCompDirectiveNoFileComp
	}
	c, err := f.cluster()
	if err != nil || len(args) > 1 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	namespace, err := f.scope(false)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	pods, err := podsOf(contextOf(cmd), c, namespace, "")
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for i := range pods {
		names = append(names, pods[i].Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

func key(pod *corev1.Pod) string { return pod.Namespace + "/" + pod.Name }
