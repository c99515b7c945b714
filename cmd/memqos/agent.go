package main

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrlmetrics "sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/memqos/memqos/cgroup"
	"github.com/memqos/memqos/controllers"
	"github.com/memqos/memqos/metrics"
)

func newAgentCommand() *cobra.Command {
	var flags nodeFlags
	var daemonSet string
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Keep the files of this node's cgroups right (what the DaemonSet runs)",
		Long: `agent watches the pods of one node and keeps memory.min, memory.high and
memory.max of their cgroups, of the Burstable class and of kubepods at what the
plan wants. It writes only what differs and only beneath kubepods.

It needs uid 0 and no capability, the host's cgroup2 mount, a state directory, and
the rights of deploy/rbac.yaml. On a node that it cannot serve (cgroup v1, a
kernel before 5.8, no kubepods yet) it says so, idles, and looks again.`,
		Example: `  memqos agent --node-name "$(hostname)" --kubeconfig /etc/memqos/kubeconfig
  memqos agent --config /etc/memqos/config.yaml --cgroup-root /host/sys/fs/cgroup`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			leaveLittleGarbage()
			keepListening()
			source, c, err := flags.open()
			if err != nil {
				return err
			}
			own, err := parseDaemonSet(daemonSet)
			if err != nil {
				return err
			}
			log := newLogger(cmd.ErrOrStderr(), c.Logging)
			ctrl.SetLogger(log)
			klog.SetLogger(log)
			api, err := flags.api()
			if err != nil {
				return err
			}
			o := flags.options(c)
			o.Log, o.Source, o.Version = log, source, version
			o.Metrics = metrics.New(ctrlmetrics.Registry, version, buildRevision(), runtime.Version())
			if o.Boot, err = cgroup.BootID(); err != nil {
				return err
			}
			mgr, err := controllers.New(api, o)
			if err != nil {
				return err
			}
			log.Info("starting", "version", version, "revision", buildRevision(), "node", flags.nodeName)
			err = mgr.Start(ctrl.SetupSignalHandler())
			leave(c, api, own, o.Discover, log)
			return err
		},
	}
	flags.add(cmd)
	cmd.Flags().StringVar(&daemonSet, "daemonset", "", "NAMESPACE/NAME of the DaemonSet that runs this agent: when it is gone or going, the agent is being uninstalled (see restoreOnExit)")
	return cmd
}

// leaveLittleGarbage makes the collector run when the heap has grown by a quarter
// instead of when it has doubled, unless GOGC says otherwise: on a node of 500 pods this
// is some 7 MiB, for milliseconds of processor time in a minute.
func leaveLittleGarbage() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(25)
	}
}

// keepListening makes the Go runtime use two threads at a time on a machine of one
// processor too, unless GOMAXPROCS says otherwise. With one, who reads what the kernel tells
// of cgroups waits until a reconcile under way gives it up, 10 ms at a time; with two the
// kernel lets it run at once.
func keepListening() {
	if os.Getenv("GOMAXPROCS") == "" && runtime.GOMAXPROCS(0) < 2 {
		runtime.GOMAXPROCS(2)
	}
}

// refuseHugePages starts the program anew, so that the kernel gives it no huge pages
// where it would unasked ("always", as on Debian). They round every part of a heap of a
// few MiB up to 2 MiB, and those that the runtime has at its start would stay.
func refuseHugePages() {
	refused := func() bool {
		n, err := unix.PrctlRetInt(unix.PR_GET_THP_DISABLE, 0, 0, 0, 0)
		return err != nil || n != 0
	}
	if refused() || unix.Prctl(unix.PR_SET_THP_DISABLE, 1, 0, 0, 0) != nil || !refused() {
		return
	}
	// By its own path, whose last part is what ps and pkill call it.
	if self, err := os.Executable(); err == nil {
		_ = unix.Exec(self, os.Args, os.Environ()) // or go on with those that are there
	}
}

func parseDaemonSet(s string) (client.ObjectKey, error) {
	if s == "" {
		return client.ObjectKey{}, nil
	}
	namespace, name, ok := strings.Cut(s, "/")
	if !ok || namespace == "" || name == "" || strings.Contains(name, "/") {
		return client.ObjectKey{}, fmt.Errorf("--daemonset %q: want NAMESPACE/NAME", s)
	}
	return client.ObjectKey{Namespace: namespace, Name: name}, nil
}
