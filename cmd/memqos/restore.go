package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/memqos/memqos/cgroup"
	"github.com/memqos/memqos/config"
	"github.com/memqos/memqos/controllers"
	"github.com/memqos/memqos/ledger"
)

func newRestoreCommand() *cobra.Command {
	var flags treeFlags
	cmd := &cobra.Command{
		Use:   "restore",
		Short: "Put back what was there before memqos first wrote, and forget",
		Long: `restore gives every file that memqos has written on this node the value that it
would have without memqos: the one that somebody else last wrote. What somebody
else has written since stays. It reads no API server and needs no node name.

No agent may be running: it would write again. A memory.max that would kill what
is in use is left, and named; run restore again once usage has fallen.`,
		Example: `  memqos restore
  memqos restore --config /etc/memqos/config.yaml --cgroup-root /host/sys/fs/cgroup`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := flags.load()
			if err != nil {
				return err
			}
			r, err := restore(c, flags.discover(c))
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%d files restored, %d needed nothing, %d left\n", r.Restored, r.Unchanged, len(r.Left))
			return errors.Join(append(r.Left, err)...)
		},
	}
	flags.add(cmd)
	return cmd
}

// restore puts back what the state directory of a configuration tells of.
func restore(c *config.MemoryQoSConfiguration, discover func() (*cgroup.Tree, error)) (_ controllers.Restoration, err error) {
	boot, err := cgroup.BootID()
	if err != nil {
		return controllers.Restoration{}, err
	}
	tree, err := discover()
	if err != nil {
		return controllers.Restoration{}, err
	}
	l, err := ledger.Open(c.StateDir, boot)
	if errors.Is(err, ledger.ErrInUse) {
		return controllers.Restoration{}, fmt.Errorf("%w: stop the agent first", err)
	}
	if err != nil {
		return controllers.Restoration{}, err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	return controllers.Restore(tree, l)
}

// askTimeout bounds the question whether the agent is being uninstalled: its pod
// has a grace period.
const askTimeout = 10 * time.Second

// leave is what the agent does last: it restores if it is meant to.
func leave(c *config.MemoryQoSConfiguration, api *rest.Config, daemonSet client.ObjectKey, discover func() (*cgroup.Tree, error), log logr.Logger) {
	switch {
	case c.RestoreOnExit == config.RestoreNever, c.RestoreOnExit == config.RestoreAuto && daemonSet.Name == "":
		return
	case c.RestoreOnExit == config.RestoreAuto:
		ctx, cancel := context.WithTimeout(context.Background(), askTimeout)
		defer cancel()
		gone, err := controllers.Uninstalled(ctx, api, daemonSet)
		if err != nil {
			log.Error(err, "keeping the values: it is not known whether memqos is being uninstalled")
			return
		}
		if !gone {
			log.Info("keeping the values: memqos is not being uninstalled", "daemonSet", daemonSet.String())
			return
		}
	}
	r, err := restore(c, discover)
	if err != nil {
		log.Error(err, "the values were not put back")
		return
	}
	for _, left := range r.Left {
		log.Info("left as it is", "reason", left.Error())
	}
	log.Info("restored", "files", r.Restored, "unchanged", r.Unchanged, "left", len(r.Left))
}
