// Command memqos keeps the memory.* files of a Kubernetes node's cgroups at what
// the kubelet's MemoryQoS feature would write.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/memqos/memqos/plugin"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "agent" {
		refuseHugePages()
	}
	cmd := newCommand()
	// kubectl runs its plugins by their names.
	if strings.HasPrefix(filepath.Base(os.Args[0]), "kubectl-memqos") {
		cmd = plugin.New("kubectl-memqos", version)
	}
	if err := cmd.Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "memqos: "+err.Error())
		os.Exit(1)
	}
}

func newCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "memqos",
		Short: "Kubernetes MemoryQoS from outside the kubelet",
		Long: `memqos gives a Kubernetes node the kubelet's MemoryQoS feature (KEP-2570) from
outside: it turns the memory requests and limits of the node's pods into the
cgroup v2 files memory.min, memory.high and memory.max of each container, pod and
QoS class, as a kubelet of a chosen release would with its feature gate on.

  memqos agent     runs on every node and keeps the files right
  memqos plan      shows offline what would be written for some pods, and why
  memqos inspect   shows on a node what is wanted and what the kernel holds
  memqos kubectl   shows it for a cluster; installed as kubectl-memqos, kubectl memqos`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
	}
	cmd.AddCommand(newAgentCommand(), newPlanCommand(), newInspectCommand(), newRestoreCommand(), newVersionCommand(), plugin.New("kubectl", version))
	return cmd
}
