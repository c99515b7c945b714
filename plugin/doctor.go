package plugin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/memqos/memqos/config"
	"github.com/memqos/memqos/memory"
	"github.com/memqos/memqos/status"
)

// Finding is what doctor has to say of a node.
type Finding struct {
	Node  string `json:"node"`
	Grade Grade  `json:"grade"`
	What  string `json:"what"`
	Do    string `json:"do,omitempty"`
}

// Grade says how much a finding asks for somebody.
type Grade string

// The grades.
const (
	Good Grade = "OK"
	Note Grade = "NOTE" // good to know
	Warn Grade = "WARN" // works, and less well than it could
	Bad  Grade = "FAIL" // the node is not served
)

func newDoctor(f *flags) *cobra.Command {
	var out *output
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Say of each node whether it is fit, and what to do",
		Long: `doctor looks at the kernel, cgroup2 and its mount options, pressure (PSI), the kubelet's
own MemoryQoS, the agent and its configuration, and how the values stand. It ends with
status 1 if a node is not served.

It sends one request for the nodes, one for the agents, and one for each node.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := f.cluster()
			if err != nil {
				return err
			}
			return doctor(contextOf(cmd), c, *out, cmd.OutOrStdout())
		},
	}
	out = addOutput(cmd, "json", "yaml")
	return cmd
}

func doctor(ctx context.Context, c *cluster, format output, out io.Writer) error {
	nodes, err := c.clients.Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list the nodes: %w", err)
	}
	agents, err := c.agents(ctx, "")
	if err != nil {
		return err
	}
	c.down = map[string]bool{}
	for i := range nodes.Items {
		c.down[nodes.Items[i].Name] = nodeDown(&nodes.Items[i])
	}
	byNode := map[string]answer{}
	for _, a := range c.ask(ctx, agents, "", "") {
		byNode[a.Node] = a
	}
	findings := []Finding{}
	for i := range nodes.Items {
		n := &nodes.Items[i]
		a, has := byNode[n.Name]
		if !has {
			findings = append(findings, Finding{n.Name, Bad, "no agent runs there", "look at the DaemonSet's nodeSelector, affinity and tolerations, and at its events"})
			continue
		}
		findings = append(findings, examine(n, a)...)
	}
	done, err := format.encode(out, findings)
	if !done {
		rows := [][]string{{"NODE", "", "FINDING", "WHAT TO DO"}}
		for _, x := range findings {
			rows = append(rows, []string{x.Node, string(x.Grade), x.What, x.Do})
		}
		err = table(out, rows)
	}
	if err == nil && slices.ContainsFunc(findings, func(x Finding) bool { return x.Grade == Bad }) {
		err = errors.New("not every node is served")
	}
	return err
}

// advice is what to do by the reasons to idle.
var advice = map[string]string{
	"CgroupV1":           "boot it with systemd.unified_cgroup_hierarchy=1, or keep the agents off such nodes",
	"KernelTooOld":       "Linux 5.8 or later is needed",
	"NoMemoryController": "boot it without cgroup_disable=memory",
	"KubepodsNotFound":   "is a kubelet running there? Else set config.cgroupRoot",
	"KubepodsAmbiguous":  "set config.cgroupRoot and config.cgroupDriver to the kubelet's",
	"NoCgroup2Mount":     "mount the host's cgroup2 into the agent",
	"Inaccessible":       "look at the agent's log",
	"AnotherAgent":       "two DaemonSets, or a pod that has not ended: remove one",
	"StateInaccessible":  "the state directory must be writable to uid 0",
}

// examine judges one node. n says what the API server knows of it.
func examine(n *corev1.Node, a answer) (all []Finding) {
	say := func(g Grade, do, format string, args ...any) {
		all = append(all, Finding{n.Name, g, fmt.Sprintf(format, args...), do})
	}
	if a.Err != nil {
		namespace, pod, _ := strings.Cut(a.Pod, "/")
		do := "kubectl -n " + namespace + " describe pod " + pod
		if nodeDown(n) {
			do = "the node is not ready: see kubectl describe node " + n.Name
		}
		say(Bad, do, "the agent %s: %s", pod, a.Err)
		return all
	}
	s := a.Status
	agent := s.Agent
	if agent == nil || agent.Configuration == nil {
		say(Bad, "", "the agent does not tell of itself")
		return all
	}
	if agent.Idle != "" {
		say(Bad, advice[agent.Idle], "not served: %s: %s", agent.Idle, agent.IdleMessage)
		return all
	}
	c := agent.Configuration
	swap := "no swap"
	if s.Machine.SwapBytes > 0 {
		swap = "swap " + memory.Value(s.Machine.SwapBytes).Human()
	}
	say(Good, "", "served: kernel %s, cgroup v2 (%s driver), kubelet %s, memqos %s, %s", s.Machine.Kernel, s.Machine.CgroupDriver, n.Status.NodeInfo.KubeletVersion, agent.Version, swap)
	if !s.Machine.Pressure {
		say(Warn, "boot it with psi=1", "the kernel counts no pressure (PSI): the stall guard goes by events and progress alone")
	}
	if len(s.Machine.MountOptions) > 0 && !slices.Contains(s.Machine.MountOptions, "memory_recursiveprot") {
		say(Note, "none needed: memqos sets protection at every level", "cgroup2 is mounted without memory_recursiveprot; some container may have remounted it")
	}
	if !agent.Watching {
		say(Warn, "raise fs.inotify.max_user_watches and max_user_instances", "the kernel does not tell of every cgroup: overwrites are found by polling, every 5 s")
	}
	if agent.Refused != "" {
		say(Warn, "correct it, or restart the agents: kubectl rollout restart", "a changed configuration is not in use: %s", agent.Refused)
	}
	if len(agent.KubeletConfigured) > 0 {
		say(Note, "decide who does it: docs/operations.md", "the kubelet's configuration turns on its own MemoryQoS: %s", names(agent.KubeletConfigured))
	}
	if len(agent.LeftToKubelet) > 0 {
		say(Note, "decide who does it: featureGates MemoryQoS=false in the kubelet's configuration leaves it to memqos", "the kubelet's own MemoryQoS writes %s: memqos leaves them to it", names(agent.LeftToKubelet))
	} else {
		say(Good, "", "the kubelet's own MemoryQoS is not seen to write")
	}
	if c.Mode == config.DryRun {
		say(Note, "kubectl memqos diff -A shows what would be; config.mode=Enforce writes it", "a dry run: nothing is written")
	}
	if agent.LastPass == nil {
		say(Warn, "look at the agent's log", "no full pass has ended since the agent started, %s ago", ago(s.Time, agent.Started))
	} else if late := s.Time.Sub(*agent.LastPass); late > 5*time.Minute {
		say(Warn, "look at the agent's log", "the last full pass ended %s ago", ago(s.Time, *agent.LastPass))
	}
	counts := map[status.Verdict]int{}
	for i := range s.Cgroups {
		counts[s.Cgroups[i].Verdict]++
	}
	switch {
	case counts[status.Drifted] > 0 && c.Mode != config.DryRun:
		say(Warn, "kubectl memqos top -A --node "+n.Name+", then explain: who wrote?", "%d cgroups do not hold what is wanted", counts[status.Drifted])
	case counts[status.Drifted] == 0:
		say(Good, "", "%d cgroups hold what is wanted", counts[status.Fulfilled])
	}
	if k := counts[status.Relaxed]; k > 0 {
		say(Warn, "more memory, or another factor: kubectl memqos top -A --node "+n.Name, "%d containers stood still at memory.high and were let go", k)
	}
	if r := s.Rail(); r.Top > 0 && r.Sum >= r.Top {
		say(Note, "rails.systemReserve", "the rail binds: %s is protected and no more", r.Sum.Human())
	}
	return all
}

func nodeDown(n *corev1.Node) bool {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status != corev1.ConditionTrue
		}
	}
	return true
}

func names(files []memory.File) string {
	var all []string
	for _, f := range files {
		all = append(all, string(f))
	}
	return strings.Join(all, ", ")
}
