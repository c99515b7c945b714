package testnode

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// controllers are the programs of a control plane beside the API server.
var controllers = []string{"kube-controller-manager", "kube-scheduler"}

// controllerBinaries returns the paths of their binaries.
func (c cache) controllerBinaries(ctx context.Context, root, version string) (binaries []string, err error) {
	for _, component := range controllers {
		binary, err := c.kubernetes(ctx, root, version, component)
		if err != nil {
			return nil, err
		}
		binaries = append(binaries, binary)
	}
	return binaries, nil
}

// startControllers starts the controller manager and the scheduler, once the API
// server is ready, and returns when the first namespaces have their service
// account: without it no pod is admitted there.
func (c *controlPlane) startControllers(ctx context.Context, binaries []string) error {
	for i, component := range controllers {
		pair, err := c.authority.kubeconfig(c.hostURL(), "system:"+component)
		if err != nil {
			return err
		}
		kubeconfig, err := c.write(component+".kubeconfig", pair)
		if err != nil {
			return err
		}
		argv := []string{
			binaries[i], "--kubeconfig=" + kubeconfig,
			"--leader-elect=false",
			"--secure-port=0", // nobody asks them for anything
			"--profiling=false",
		}
		if component == "kube-controller-manager" {
			argv = append(argv,
				"--service-account-private-key-file="+c.path("service-account.key"),
				"--root-ca-file="+c.path("ca.crt"),
				"--use-service-account-credentials=true",
				// An emulated node on a busy machine is slow, not gone.
				"--node-monitor-grace-period=5m")
		}
		p, err := startProcess(component, filepath.Join(c.dir, component+".log"), argv...)
		if err != nil {
			return err
		}
		c.controllers = append(c.controllers, p)
	}
	ctx, cancel := context.WithTimeout(ctx, apiDeadline)
	defer cancel()
	clients, err := kubernetes.NewForConfig(c.admin)
	if err != nil {
		return fmt.Errorf("make an API client: %w", err)
	}
	for {
		for _, p := range c.controllers {
			if err := p.exited(); err != nil {
				return err
			}
		}
		var last error
		for _, namespace := range []string{metav1.NamespaceDefault, metav1.NamespaceSystem} {
			if last = hasServiceAccount(ctx, clients, namespace); last != nil {
				break
			}
		}
		if last == nil {
			return nil
		}
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return fmt.Errorf("wait for the controller manager: %w (%w)", err, last)
		}
	}
}

// hasServiceAccount returns an error while pods cannot be made in a namespace, for
// want of its service account and the certificate that goes with its token.
func hasServiceAccount(ctx context.Context, clients kubernetes.Interface, namespace string) error {
	if _, err := clients.CoreV1().ServiceAccounts(namespace).Get(ctx, "default", metav1.GetOptions{}); err != nil {
		return err
	}
	_, err := clients.CoreV1().ConfigMaps(namespace).Get(ctx, "kube-root-ca.crt", metav1.GetOptions{})
	return err
}

// awaitServiceAccount waits for what the controller manager puts into a namespace
// that has just been made.
func (n *Node) awaitServiceAccount(ctx context.Context, namespace string) error {
	for {
		err := hasServiceAccount(ctx, n.clients, namespace)
		if !apierrors.IsNotFound(err) {
			return err
		}
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return fmt.Errorf("wait for the service account of namespace %s: %w", namespace, err)
		}
	}
}

// routeService makes the guest reach the Service "kubernetes" at its address, as
// kube-proxy does on a real node.
func (n *Node) routeService(ctx context.Context) error {
	for _, chain := range []string{"PREROUTING", "OUTPUT"} {
		_, err := n.Run(ctx, "iptables", "-w", "-t", "nat", "-A", chain, "-d", firstService, "-p", "tcp", "--dport", "443",
			"-j", "DNAT", "--to-destination", fmt.Sprintf("%s:%d", hostInGuest, n.plane.port.number))
		if err != nil {
			return fmt.Errorf("route the API server's Service: %w", err)
		}
	}
	return nil
}
