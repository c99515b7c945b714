// Package nodeagent owns running memqos on a test node: built from this tree, as
// a systemd service with uid 0 and no capability, and with the rights that
// deploy/rbac.yaml gives and no more.
package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/memqos/memqos/hack/testnode"
)

// Where the agent listens in the guest, its defaults.
const (
	metricsAddress = "127.0.0.1:9810"
	healthzAddress = "127.0.0.1:9811"
)

const (
	unit           = "memqos"
	binaryPath     = "/usr/local/bin/memqos"
	configPath     = "/etc/memqos/config.yaml"
	kubeconfigPath = "/etc/memqos/kubeconfig"
)

// Agent is memqos on a test node.
type Agent struct {
	// NodeName is the name of the Node whose pods it serves. Default: the node's.
	NodeName string
	// DaemonSet is what the agent takes for its own, as NAMESPACE/NAME; "": it has none.
	DaemonSet string

	node             *testnode.Node
	metrics, healthz string
}

// Install builds memqos, and puts it, its rights and a configuration on a node. It
// does not start it.
func Install(ctx context.Context, node *testnode.Node, root, configuration string) (*Agent, error) {
	binary, err := build(ctx, root, node.Dir())
	if err != nil {
		return nil, err
	}
	rbac, err := os.ReadFile(filepath.Join(root, "deploy", "rbac.yaml"))
	if err != nil {
		return nil, err
	}
	if err := node.Apply(ctx, rbac); err != nil {
		return nil, fmt.Errorf("apply deploy/rbac.yaml: %w", err)
	}
	kubeconfig, err := node.GuestKubeconfig("system:serviceaccount:memqos:memqos", "system:serviceaccounts", "system:serviceaccounts:memqos")
	if err != nil {
		return nil, err
	}
	if err := node.CopyIn(ctx, binary, binaryPath); err != nil {
		return nil, err
	}
	a := &Agent{NodeName: node.Name(), node: node}
	for path, data := range map[string][]byte{kubeconfigPath: kubeconfig, configPath: []byte(configuration)} {
		if err := node.WriteFile(ctx, path, data, 0o600); err != nil {
			return nil, err
		}
	}
	if a.metrics, err = node.Forward(metricsAddress); err != nil {
		return nil, err
	}
	a.healthz, err = node.Forward(healthzAddress)
	return a, err
}

func build(ctx context.Context, root, dir string) (string, error) {
	binary := filepath.Join(dir, "memqos")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", binary, "./cmd/memqos")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build memqos: %w\n%s", err, out)
	}
	return binary, nil
}

// Start starts the agent and returns once it is ready: its first full pass is over.
func (a *Agent) Start(ctx context.Context) error {
	if err := a.Launch(ctx); err != nil {
		return err
	}
	return a.WaitReady(ctx)
}

// Launch starts the agent and does not wait.
func (a *Agent) Launch(ctx context.Context) error {
	return a.launch(ctx, []string{
		"--property=CapabilityBoundingSet=",
		"--property=NoNewPrivileges=yes",
		"--property=ProtectSystem=strict",
		"--property=PrivateTmp=yes",
		"--property=MemoryDenyWriteExecute=yes",
		"--property=SystemCallArchitectures=native",
	})
}

// LaunchIn is Launch in a cgroup that is the root of the agent's own cgroup
// namespace, as in a container.
func (a *Agent) LaunchIn(ctx context.Context, dir string) error {
	const script = `echo $$ > "$0/cgroup.procs" && exec unshare --cgroup "$@"`
	return a.launch(ctx, nil, "sh", "-c", strings.ReplaceAll(script, "$", "$$"), dir) // systemd expands too
}

func (a *Agent) launch(ctx context.Context, properties []string, prefix ...string) error {
	// A transient unit: installing one would take a daemon-reload, at which systemd
	// rewrites the memory.* files of slices.
	_, err := a.node.Run(ctx, slices.Concat(
		[]string{
			"systemd-run", "--unit=" + unit, "--collect",
			"--property=RuntimeDirectory=memqos", // the state, which outlives the agent
			"--property=RuntimeDirectoryPreserve=yes",
		},
		properties, prefix, []string{binaryPath, "agent"}, a.nodeFlags(), a.daemonSetFlag())...)
	if err != nil {
		return fmt.Errorf("start memqos: %w", err)
	}
	return nil
}

func (a *Agent) nodeFlags() []string {
	return []string{"--config", configPath, "--kubeconfig", kubeconfigPath, "--node-name", a.NodeName}
}

func (a *Agent) daemonSetFlag() []string {
	if a.DaemonSet == "" {
		return nil
	}
	return []string{"--daemonset", a.DaemonSet}
}

// Configure replaces the configuration file, which a running agent follows.
func (a *Agent) Configure(ctx context.Context, configuration string) error {
	return a.node.WriteFile(ctx, configPath, []byte(configuration), 0o600)
}

// Stop ends the agent as the kubelet does, by SIGTERM, and waits for its end.
func (a *Agent) Stop(ctx context.Context) error { return a.end(ctx, "TERM") }

// WaitReady waits until /readyz says yes.
func (a *Agent) WaitReady(ctx context.Context) error {
	var last error
	for {
		body, err := get(ctx, "http://"+a.healthz+"/readyz")
		if err == nil {
			return nil
		}
		last = fmt.Errorf("%w %s", err, body)
		select {
		case <-ctx.Done():
			log, err := a.Log(context.WithoutCancel(ctx))
			return fmt.Errorf("memqos did not become ready: %w; its log:\n%s", errors.Join(last, err), log)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// Kill ends the agent by SIGKILL.
func (a *Agent) Kill(ctx context.Context) error { return a.end(ctx, "KILL") }

func (a *Agent) end(ctx context.Context, signal string) error {
	if _, err := a.node.Run(ctx, "systemctl", "kill", "--signal="+signal, unit); err != nil {
		return err
	}
	for ctx.Err() == nil {
		state, _ := a.node.Run(ctx, "systemctl", "is-active", unit) // fails when it is not
		if strings.TrimSpace(state) == "inactive" || strings.TrimSpace(state) == "failed" {
			return nil
		}
	}
	return ctx.Err()
}

// Log returns what the agent has logged.
func (a *Agent) Log(ctx context.Context) (string, error) {
	return a.node.Run(ctx, "journalctl", "--unit="+unit, "--output=cat", "--no-pager")
}

// Inspect runs memqos inspect on the node.
func (a *Agent) Inspect(ctx context.Context, format string) (string, error) {
	return a.node.Run(ctx, append([]string{binaryPath, "inspect", "-o", format}, a.nodeFlags()...)...)
}

// family returns all the series of a metric.
func (a *Agent) family(ctx context.Context, name string) (*dto.MetricFamily, error) {
	body, err := get(ctx, "http://"+a.metrics+"/metrics")
	if err != nil {
		return nil, err
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	family, ok := families[name]
	if !ok {
		return nil, fmt.Errorf("no metric %s", name)
	}
	return family, nil
}

// Histogram returns the buckets of a histogram without labels, as text: how many
// were at most how much.
func (a *Agent) Histogram(ctx context.Context, name string) (string, error) {
	family, err := a.family(ctx, name)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	last := uint64(0)
	for _, m := range family.GetMetric() {
		h := m.GetHistogram()
		fmt.Fprintf(&b, "%d in all", h.GetSampleCount())
		for _, bucket := range h.GetBucket() {
			if n := bucket.GetCumulativeCount(); n != last {
				fmt.Fprintf(&b, ", %d <= %g", n, bucket.GetUpperBound())
				last = n
			}
		}
	}
	return b.String(), nil
}

// Restore runs memqos restore on the node. The agent must not run.
func (a *Agent) Restore(ctx context.Context) (string, error) {
	return a.node.Run(ctx, binaryPath, "restore", "--config", configPath)
}

// Metric returns the sum of a metric over the series that have the labels.
func (a *Agent) Metric(ctx context.Context, name string, labels map[string]string) (float64, error) {
	family, err := a.family(ctx, name)
	if err != nil {
		return 0, err
	}
	sum := 0.0
series:
	for _, m := range family.GetMetric() {
		got := map[string]string{}
		for _, l := range m.GetLabel() {
			got[l.GetName()] = l.GetValue()
		}
		for name, value := range labels {
			if got[name] != value {
				continue series
			}
		}
		sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
	}
	return sum, nil
}

func get(ctx context.Context, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close() //nolint:errcheck // read only
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("GET %s: %s", url, resp.Status)
	}
	return string(body), err
}
