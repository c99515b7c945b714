// Command demo shows memqos at work: it boots a real node whose kubelet has the
// MemoryQoS gate off, runs pods of every kind on it, and prints what memqos wants
// of their cgroups and what the node's kernel holds, before and after.
package main

import (
	"context"
	_ "embed"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/memqos/memqos/hack/nodeagent"
	"github.com/memqos/memqos/hack/testnode"
)

//go:embed pods.yaml
var pods []byte

//go:embed static.yaml
var static []byte

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo: "+err.Error())
		os.Exit(1)
	}
}

// stages times what the demo does after the node is up.
type stages []testnode.Stage

func (s *stages) time(name string, do func() error) error {
	start := time.Now()
	err := do()
	*s = append(*s, testnode.Stage{Name: name, Duration: time.Since(start)})
	return err
}

func run(ctx context.Context) (err error) {
	node, err := testnode.Start(ctx, testnode.Options{
		Kubernetes:   "1.37.1", // the newest: it knows sidecars
		FeatureGates: map[string]bool{"MemoryQoS": false},
		StaticPods:   map[string][]byte{"static.yaml": static},
		Log:          os.Stdout,
	})
	if err != nil {
		return err
	}
	defer func() {
		if e := node.Stop(); err == nil {
			err = e
		}
	}()

	var s stages
	var agent *nodeagent.Agent
	say := func(text string) { fmt.Println("\n" + text) }
	show := func() error {
		table, err := agent.Inspect(ctx, "table")
		fmt.Print(table)
		return err
	}
	say("Starting pods of every kind. The kubelet's MemoryQoS gate is off.")
	if err := s.time("pods running", func() error {
		if err := node.Apply(ctx, pods); err != nil {
			return err
		}
		if err := node.WaitRunning(ctx, pods); err != nil {
			return err
		}
		return node.WaitPod(ctx, "default", "static-"+node.Name())
	}); err != nil {
		return err
	}
	if err := s.time("memqos built and installed", func() (err error) {
		agent, err = nodeagent.Install(ctx, node, ".", "apiVersion: memqos.io/v1alpha1\nkind: MemoryQoSConfiguration\n")
		return err
	}); err != nil {
		return err
	}
	say("Before: what memqos would want, and what the node's kernel holds ($ memqos inspect)")
	if err := show(); err != nil {
		return err
	}
	if err := s.time("memqos started, first full pass over", func() error { return agent.Start(ctx) }); err != nil {
		return err
	}
	writes, err := agent.Metric(ctx, "memqos_writes_total", map[string]string{"result": "written"})
	if err != nil {
		return err
	}
	took, err := agent.Metric(ctx, "memqos_last_full_pass_duration_seconds", nil)
	if err != nil {
		return err
	}
	say(fmt.Sprintf("memqos runs. Its full pass took %.0f ms in the emulated node and wrote %.0f files.", took*1000, writes))
	say("After: ($ memqos inspect)")
	if err := show(); err != nil {
		return err
	}
	say("Time of each stage:")
	for _, stage := range append(node.Timings(), s...) {
		fmt.Printf("  %s%s %6.1fs\n", stage.Name, strings.Repeat(".", max(2, 52-len(stage.Name))), stage.Duration.Seconds())
	}
	return nil
}
