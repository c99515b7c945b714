package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	cliflag "k8s.io/component-base/cli/flag"

	"github.com/memqos/memqos/cgroup"
	"github.com/memqos/memqos/config"
	"github.com/memqos/memqos/controllers"
)

// treeFlags are the flags of the commands that find the node's tree.
type treeFlags struct {
	config       string
	cgroupRoot   string
	featureGates map[string]bool
}

func (f *treeFlags) add(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringVar(&f.config, "config", "", "file with a MemoryQoSConfiguration; without it every setting has its default")
	fs.StringVar(&f.cgroupRoot, "cgroup-root", "", "directory at which the host's cgroup2 hierarchy is mounted, for example /host/sys/fs/cgroup; without it the mounts of this process are searched")
}

// load reads the configuration and lays the flags over it.
func (f *treeFlags) load() (*config.MemoryQoSConfiguration, error) {
	return config.Load(f.config, f.overlay)
}

// overlay lays the flags over a configuration.
func (f *treeFlags) overlay(c *config.MemoryQoSConfiguration) {
	if c.FeatureGates == nil {
		c.FeatureGates = map[string]bool{}
	}
	maps.Copy(c.FeatureGates, f.featureGates)
}

// discover returns what finds the tree.
func (f *treeFlags) discover(c *config.MemoryQoSConfiguration) func() (*cgroup.Tree, error) {
	return func() (*cgroup.Tree, error) { return cgroup.Discover(f.cgroupRoot, c.CgroupRoot, c.CgroupDriver) }
}

// nodeFlags are the flags of the commands that speak of a node's pods.
type nodeFlags struct {
	treeFlags
	nodeName   string
	kubeconfig string
}

func (f *nodeFlags) add(cmd *cobra.Command) {
	f.treeFlags.add(cmd)
	fs := cmd.Flags()
	fs.StringVar(&f.nodeName, "node-name", os.Getenv("NODE_NAME"), "name of the Node object of this machine (default: the environment variable NODE_NAME)")
	fs.StringVar(&f.kubeconfig, "kubeconfig", "", "file that says how to reach the API server; without it the pod's service account, else $KUBECONFIG or ~/.kube/config")
	f.featureGates = map[string]bool{}
	fs.Var(cliflag.NewMapStringBool(&f.featureGates), "feature-gates", "feature gates that override the configuration, as MemoryQoS=true|false")
}

var errNoNodeName = errors.New("the node's name is not known: give --node-name, or set NODE_NAME (in a pod from spec.nodeName)")

// load reads the configuration and lays the flags over it.
func (f *nodeFlags) load() (*config.MemoryQoSConfiguration, error) {
	if f.nodeName == "" {
		return nil, errNoNodeName
	}
	return f.treeFlags.load()
}

// open does the same, and returns the source of later changes too.
func (f *nodeFlags) open() (*config.Source, *config.MemoryQoSConfiguration, error) {
	if f.nodeName == "" {
		return nil, nil, errNoNodeName
	}
	return config.Open(f.config, f.overlay)
}

// api returns how to reach the API server.
func (f *nodeFlags) api() (*rest.Config, error) {
	var c *rest.Config
	var err error
	if f.kubeconfig == "" {
		c, err = rest.InClusterConfig()
	}
	if f.kubeconfig != "" || errors.Is(err, rest.ErrNotInCluster) {
		rules := clientcmd.NewDefaultClientConfigLoadingRules()
		rules.ExplicitPath = f.kubeconfig
		c, err = clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil).ClientConfig()
	}
	if err != nil {
		return nil, fmt.Errorf("no way to the API server: %w", err)
	}
	c.UserAgent = "memqos/" + version
	return c, nil
}

// options are the options of the controllers, less what only the agent has.
func (f *nodeFlags) options(c *config.MemoryQoSConfiguration) controllers.Options {
	return controllers.Options{
		NodeName: f.nodeName,
		Config:   c,
		Discover: f.discover(c),
	}
}

// newLogger returns the logger that a configuration asks for. Verbosity n of
// logr is level -n of slog.
func newLogger(w io.Writer, l config.Logging) logr.Logger {
	o := &slog.HandlerOptions{Level: slog.Level(-l.Verbosity)}
	if l.Format == "text" {
		return logr.FromSlogHandler(slog.NewTextHandler(w, o))
	}
	return logr.FromSlogHandler(slog.NewJSONHandler(w, o))
}

// output is the value of a flag -o.
type output string

func (o *output) add(cmd *cobra.Command) {
	*o = "table"
	cmd.Flags().VarP(o, "output", "o", "output format: "+strings.Join(outputs, ", "))
	cobra.CheckErr(cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(outputs, cobra.ShellCompDirectiveNoFileComp)))
}

var outputs = []string{"table", "json", "yaml"}

// String implements pflag.Value.
func (o *output) String() string { return string(*o) }

// Type implements pflag.Value.
func (o *output) Type() string { return "format" }

// Set implements pflag.Value.
func (o *output) Set(s string) error {
	if !slices.Contains(outputs, s) {
		return fmt.Errorf("want one of %s", strings.Join(outputs, ", "))
	}
	*o = output(s)
	return nil
}
