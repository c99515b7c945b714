// Testnode builds and boots the test node from the command line.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/memqos/memqos/hack/testnode"
)

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := rootCommand().ExecuteContext(ctx)
	if err != nil && ctx.Err() != nil {
		err = errors.New("interrupted")
	}
	cancel()
	if err != nil {
		fmt.Fprintln(os.Stderr, "testnode:", err)
		os.Exit(1)
	}
}

func rootCommand() *cobra.Command {
	options := testnode.Options{Log: os.Stderr}
	var gates []string
	root := &cobra.Command{
		Use:           "testnode",
		Short:         "A real Kubernetes node in a virtual machine, from Debian packages and Go modules",
		SilenceUsage:  true,
		SilenceErrors: true,
		PersistentPreRunE: func(*cobra.Command, []string) (err error) {
			options.FeatureGates, err = parseGates(gates)
			return err
		},
	}
	flags := root.PersistentFlags()
	flags.StringVar(&options.Kubernetes, "kubernetes", "1.27.4", "version of the kubelet and the API server")
	flags.StringVar(&options.APIServer, "apiserver", "", "version of the API server, if another")
	flags.StringVar(&options.Debian, "debian", "bookworm", "release of the root file system")
	flags.StringVar(&options.Kernel, "kernel", "", "release of the kernel, if another")
	flags.StringVar(&options.CgroupDriver, "cgroup-driver", "systemd", "systemd or cgroupfs")
	flags.StringVar(&options.CgroupRoot, "cgroup-root", "/", "the kubelet's --cgroup-root")
	flags.StringVar(&options.CRI, "cri", "containerd", "containerd or cri-o")
	flags.StringVar(&options.Runtime, "runtime", "runc", "runc or crun")
	flags.StringSliceVar(&gates, "feature-gates", nil, "the kubelet's, such as MemoryQoS=true")
	flags.IntVar(&options.MemoryMiB, "memory", 3072, "MiB of memory")
	flags.IntVar(&options.CPUs, "cpus", 0, "processors (default 1: two emulated ones lock up now and then)")
	flags.BoolVar(&options.Controllers, "controllers", false, "run the controller manager and the scheduler too")
	flags.BoolVar(&options.Audit, "audit", false, "write an audit log of the API server")
	root.AddCommand(buildCommand(&options), upCommand(&options), execCommand(), moduleCommand())
	return root
}

func parseGates(pairs []string) (map[string]bool, error) {
	gates := make(map[string]bool)
	for _, pair := range pairs {
		name, value, _ := strings.Cut(pair, "=")
		if value != "true" && value != "false" {
			return nil, fmt.Errorf("feature gate %q: want NAME=true or NAME=false", pair)
		}
		gates[name] = value == "true"
	}
	return gates, nil
}

func buildCommand(options *testnode.Options) *cobra.Command {
	return &cobra.Command{
		Use:   "build",
		Short: "Fill the cache with all that a node is made of",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return testnode.Build(cmd.Context(), *options)
		},
	}
}

func upCommand(options *testnode.Options) *cobra.Command {
	var manifests []string
	command := &cobra.Command{
		Use:   "up [-- COMMAND...]",
		Short: "Boot a node; stay until Ctrl-C, or run a command in the guest and end",
		RunE: func(cmd *cobra.Command, argv []string) error {
			return up(cmd.Context(), *options, manifests, argv)
		},
	}
	command.Flags().StringSliceVarP(&manifests, "filename", "f", nil, "manifests to apply and to wait for")
	return command
}

func up(ctx context.Context, options testnode.Options, manifests, argv []string) (err error) {
	node, err := testnode.Start(ctx, options)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, node.Stop()) }()
	if err := use(ctx, node, manifests, argv); err != nil && ctx.Err() == nil {
		logs, failed := node.CollectLogs(ctx)
		return errors.Join(fmt.Errorf("%w\nlogs of the node: %s", err, logs), failed)
	}
	return nil
}

func use(ctx context.Context, node *testnode.Node, manifests, argv []string) error {
	for _, path := range manifests {
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if err := node.Apply(ctx, data); err != nil {
			return err
		}
		if err := node.WaitRunning(ctx, data); err != nil {
			return err
		}
	}
	for _, stage := range node.Timings() {
		fmt.Fprintf(os.Stderr, "%8.1fs %s\n", stage.Duration.Seconds(), stage.Name)
	}
	if len(argv) > 0 {
		output, err := node.Run(ctx, argv...)
		fmt.Print(output)
		return err
	}
	kubeconfig, err := node.Kubeconfig("admin", "system:masters")
	if err != nil {
		return err
	}
	fmt.Printf("export KUBECONFIG=%s\nrun a command in the guest: testnode exec %s -- COMMAND\nlogs: %s\nCtrl-C ends the node\n",
		kubeconfig, node.Dir(), node.Dir())
	<-ctx.Done()
	return nil
}

func execCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "exec DIR -- COMMAND...",
		Short: "Run a command as root in the guest of a node that \"up\" has started",
		Args:  cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return testnode.Exec(cmd.Context(), args[0], nil, os.Stdout, args[1:]...)
		},
	}
}

func moduleCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "module VERSION",
		Short: "Make hack/kubernetes/vVERSION, the module that a Kubernetes version is built from",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return testnode.MakeModule(cmd.Context(), args[0], os.Stderr)
		},
	}
}
