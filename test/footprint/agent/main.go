// Agent is memqos agent on a tree of ordinary files: what it costs is told on any
// machine, with no cgroup2 mount. It is cmd/memqos but for what finds the tree.
package main

import (
	"fmt"
	"log/slog"
	"net/http"
	_ "net/http/pprof" // where the test looks for what holds memory
	"os"
	"runtime"
	"runtime/debug"

	"github.com/go-logr/logr"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	ctrlmetrics "sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/memqos/memqos/cgroup"
	"github.com/memqos/memqos/config"
	"github.com/memqos/memqos/controllers"
	"github.com/memqos/memqos/metrics"
)

func main() {
	if err := run(os.Args[1], os.Args[2], os.Args[3], os.Args[4]); err != nil {
		slog.Error(err.Error())
		os.Exit(1)
	}
}

func run(kubeconfig, node, configuration, tree string) error {
	if address := os.Getenv("PPROF"); address != "" {
		go func() { slog.Error(http.ListenAndServe(address, nil).Error()) }()
	}
	source, c, err := config.Open(configuration, func(*config.MemoryQoSConfiguration) {})
	if err != nil {
		return err
	}
	log := logr.FromSlogHandler(slog.Default().Handler())
	ctrl.SetLogger(log)
	klog.SetLogger(log)
	api, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	boot, err := cgroup.BootID()
	if err != nil {
		return fmt.Errorf("read the boot id: %w", err)
	}
	mgr, err := controllers.New(api, controllers.Options{
		NodeName: node, Config: c, Source: source, Boot: boot, Log: log,
		Metrics: metrics.New(ctrlmetrics.Registry, "footprint", "", runtime.Version()),
		Discover: func() (*cgroup.Tree, error) {
			return cgroup.OpenFixture(tree, cgroup.NewLayout(config.Cgroupfs, "/"))
		},
	})
	if err != nil {
		return err
	}
	debug.SetGCPercent(25) // as cmd/memqos does
	return mgr.Start(ctrl.SetupSignalHandler())
}
