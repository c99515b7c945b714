package testnode

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// Deadlines of the stages, generous for an emulated CPU on a busy machine.
const (
	apiDeadline   = 2 * time.Minute
	agentDeadline = 3 * time.Minute
	readyDeadline = 5 * time.Minute

	kubeletInterval = 5 * time.Second // between looks at whether the kubelet fails
)

// Node is a running node and its control plane.
type Node struct {
	dir      string
	progress *progress
	plane    *controlPlane
	vm       *process
	vmPort   *port
	agent    *agent
	clients  *kubernetes.Clientset
	unlock   func() // lets others remove dir

	stop      func() error
	mu        sync.Mutex
	listeners []net.Listener
}

// Start builds what is not cached, boots a node and returns once the API server
// shows it Ready. The context bounds the start alone; the node lives until Stop
// or until this process ends. An error names the log files to read, which are
// kept.
func Start(ctx context.Context, options Options) (*Node, error) {
	o, err := options.withDefaults()
	if err != nil {
		return nil, err
	}
	log := newProgress(o.Log)
	c, err := openCache(log)
	if err != nil {
		return nil, err
	}
	built, err := c.build(ctx, o)
	if err != nil {
		return nil, err
	}
	dir, unlock, err := makeRunDir(ctx, c)
	if err != nil {
		return nil, err
	}
	n := &Node{dir: dir, progress: log, unlock: unlock}
	n.stop = sync.OnceValue(n.tearDown)
	if err := n.boot(ctx, o, built); err != nil {
		if ctx.Err() == nil { // interrupted is not failed
			err = n.keepLogs(err)
		}
		return nil, errors.Join(err, n.Stop())
	}
	return n, nil
}

// Build fills the cache with what Start would need.
func Build(ctx context.Context, options Options) error {
	o, err := options.withDefaults()
	if err != nil {
		return err
	}
	c, err := openCache(newProgress(o.Log))
	if err != nil {
		return err
	}
	_, err = c.build(ctx, o)
	return err
}

// artefacts are the paths of all that a node is made of.
type artefacts struct {
	debian                                  debian
	accelerator                             string
	kubelet, apiServer, etcd, guest, images string
	crio                                    string   // of CRI-O's disk; "" if it is not needed
	controllers                             []string // those of controllers; none if they are not needed
}

func (c cache) build(ctx context.Context, o Options) (artefacts, error) {
	var a artefacts
	packages := hostPackages
	if o.CRI == "cri-o" {
		packages = slices.Concat(packages, crioPackages)
	}
	if err := ensureHostPackages(ctx, c, packages); err != nil {
		return a, err
	}
	root, err := sourceRoot(ctx)
	if err != nil {
		return a, err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() (err error) {
		if a.debian, err = c.debian(ctx, o); err != nil {
			return err
		}
		a.accelerator, err = c.accelerator(ctx, a.debian)
		return err
	})
	// One after the other: a Go build takes every processor, and the kubelet and
	// the API server share most packages.
	group.Go(func() (err error) {
		if a.guest, err = c.guest(ctx, root); err != nil {
			return err
		}
		if a.images, err = c.images(ctx, root); err != nil {
			return err
		}
		if a.etcd, err = c.etcd(ctx, root); err != nil {
			return err
		}
		if a.kubelet, err = c.kubernetes(ctx, root, o.Kubernetes, "kubelet"); err != nil {
			return err
		}
		if a.apiServer, err = c.kubernetes(ctx, root, o.APIServer, "kube-apiserver"); err != nil {
			return err
		}
		if o.Controllers {
			if a.controllers, err = c.controllerBinaries(ctx, root, o.APIServer); err != nil {
				return err
			}
		}
		if o.CRI == "cri-o" {
			a.crio, err = c.crio(ctx, root)
		}
		return err
	})
	return a, group.Wait()
}

func (n *Node) boot(ctx context.Context, o Options, built artefacts) (err error) {
	endStage := n.progress.stage("starting etcd and kube-apiserver %s", o.APIServer)
	n.plane, err = startControlPlane(filepath.Join(n.dir, "control-plane"), o, built.etcd, built.apiServer)
	if err != nil {
		return err
	}
	if n.clients, err = kubernetes.NewForConfig(n.plane.admin); err != nil {
		return fmt.Errorf("make an API client: %w", err)
	}
	apiReady := make(chan error, 1)
	go func() {
		err := n.plane.wait(ctx)
		if err == nil && o.Controllers {
			err = n.plane.startControllers(ctx, built.controllers)
		}
		apiReady <- err
		endStage()
	}()
	err = n.bootGuest(ctx, o, built)
	if err := errors.Join(err, <-apiReady); err != nil {
		return err
	}
	if o.Controllers {
		if err := n.routeService(ctx); err != nil {
			return err
		}
	}
	defer n.progress.stage("waiting for kubelet %s to be ready", o.Kubernetes)()
	return n.waitReady(ctx)
}

func (n *Node) bootGuest(ctx context.Context, o Options, built artefacts) (err error) {
	defer n.progress.stage("booting %s, %s, kernel %s, %s", o.Debian, o.CRI, built.debian.version, built.accelerator)()
	token := make([]byte, 16)
	if _, err := rand.Read(token); err != nil {
		return fmt.Errorf("make a token: %w", err)
	}
	files, err := payload(o, n.plane, built.guest, built.images, hex.EncodeToString(token))
	if err != nil {
		return fmt.Errorf("gather the files of this run: %w", err)
	}
	initramfs := filepath.Join(n.dir, "initramfs")
	if err := writeInitramfs(initramfs, built.debian.initramfs, files); err != nil {
		return fmt.Errorf("write the initial root: %w", err)
	}
	if n.vmPort, err = reservePort(); err != nil {
		return err
	}
	n.agent = newAgent(n.vmPort.number, hex.EncodeToString(token))
	if err := n.agent.save(filepath.Join(n.dir, agentFile)); err != nil {
		return fmt.Errorf("write how to reach the guest agent: %w", err)
	}
	egress, err := net.Listen("unix", n.plane.egressSocket())
	if err != nil {
		return fmt.Errorf("listen for the API server's calls into the node: %w", err)
	}
	n.keep(egress)
	go n.agent.serveEgress(egress)

	n.vm, err = bootMachine(o, built, n.dir, initramfs, n.vmPort.number)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, agentDeadline)
	defer cancel()
	for {
		attempt, cancel := context.WithTimeout(ctx, 5*time.Second)
		last := n.agent.healthy(attempt)
		cancel()
		if last == nil {
			return nil
		}
		if err := guestDied(n.vm, n.dir); err != nil {
			return err
		}
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return fmt.Errorf("wait for the guest to boot: %w (%w)", err, last)
		}
	}
}

func (n *Node) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyDeadline)
	defer cancel()
	lookAgain := time.Now().Add(kubeletInterval)
	for {
		if time.Now().After(lookAgain) {
			if err := n.kubeletFails(ctx); err != nil {
				return err
			}
			lookAgain = time.Now().Add(kubeletInterval)
		}
		state := "not registered"
		node, err := n.clients.CoreV1().Nodes().Get(ctx, nodeName, metav1.GetOptions{})
		if err == nil {
			for _, condition := range node.Status.Conditions {
				if condition.Type != corev1.NodeReady {
					continue
				}
				if condition.Status == corev1.ConditionTrue {
					return nil
				}
				state = condition.Message
			}
		}
		if err := guestDied(n.vm, n.dir); err != nil {
			return err
		}
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return fmt.Errorf("wait for the node to be ready: %w (%s)", err, state)
		}
	}
}

// kubeletFails tells a kubelet that ends again and again, which a mistake in its
// configuration makes it do, from one that is slow.
func (n *Node) kubeletFails(ctx context.Context) error {
	const tolerated = 3
	output, err := n.Run(ctx, "systemctl", "show", "--property=NRestarts", "--value", "kubelet")
	if err != nil {
		return nil //nolint:nilerr // a guest that cannot be asked is for the deadline to judge
	}
	if restarts, err := strconv.Atoi(strings.TrimSpace(output)); err != nil || restarts <= tolerated {
		return nil //nolint:nilerr // as above
	}
	log, err := n.ReadFile(ctx, kubeletLog)
	return errors.Join(fmt.Errorf("the kubelet ended more than %d times; the end of kubelet.log:\n%s", tolerated, lastLines(string(log), 10)), err)
}

// Name is the name of the Node object.
func (n *Node) Name() string { return nodeName }

// Dir holds the logs, certificates and data of this run; Stop removes it unless
// MEMQOS_KEEP is set.
func (n *Node) Dir() string { return n.dir }

// Timings returns the stages of the start, in the order in which they ended.
func (n *Node) Timings() []Stage { return n.progress.timings() }

// RESTConfig is an administrator's.
func (n *Node) RESTConfig() *rest.Config { return rest.CopyConfig(n.plane.admin) }

// Kubeconfig writes a kubeconfig for a user and its groups, with a client
// certificate, for use on the host.
func (n *Node) Kubeconfig(user string, groups ...string) (hostPath string, err error) {
	data, err := n.plane.authority.kubeconfig(n.plane.hostURL(), user, groups...)
	if err != nil {
		return "", err
	}
	f, err := os.CreateTemp(n.dir, "kubeconfig-*")
	if err != nil {
		return "", fmt.Errorf("write a kubeconfig: %w", err)
	}
	_, err = f.Write(data)
	if err := errors.Join(err, f.Close()); err != nil {
		return "", fmt.Errorf("write a kubeconfig: %w", err)
	}
	return f.Name(), nil
}

// GuestKubeconfig is Kubeconfig for use inside the guest.
func (n *Node) GuestKubeconfig(user string, groups ...string) ([]byte, error) {
	return n.plane.authority.kubeconfig(n.plane.guestURL(), user, groups...)
}

// Run runs a command in the guest as root. If it fails, the error is a RunError
// and stdout is what it printed until then. It is killed when ctx ends.
func (n *Node) Run(ctx context.Context, argv ...string) (stdout string, err error) {
	var out strings.Builder
	err = n.agent.run(ctx, nil, &out, argv...)
	return out.String(), err
}

// ReadFile reads a file of the guest. The error is fs.ErrNotExist for a file
// that is not there.
func (n *Node) ReadFile(ctx context.Context, path string) ([]byte, error) {
	return n.agent.readFile(ctx, path)
}

// WriteFile replaces a file of the guest, and makes its directory. Files of the
// kernel, beneath /sys and /proc, are written in place with one write.
func (n *Node) WriteFile(ctx context.Context, path string, data []byte, mode fs.FileMode) error {
	return n.agent.writeFile(ctx, path, mode, bytes.NewReader(data))
}

// CopyIn copies a file of the host into the guest, with its permissions.
func (n *Node) CopyIn(ctx context.Context, hostPath, guestPath string) (err error) {
	f, err := os.Open(hostPath)
	if err != nil {
		return fmt.Errorf("copy into the guest: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("copy into the guest: %w", err)
	}
	return n.agent.writeFile(ctx, guestPath, info.Mode(), f)
}

// Cgroups maps every cgroup at and beneath kubepods, relative to the cgroup2
// mount, to the contents of its memory.min, memory.low, memory.high and
// memory.max: bytes or "max", as the kernel prints them.
func (n *Node) Cgroups(ctx context.Context) (map[string]map[string]string, error) {
	return n.agent.cgroups(ctx)
}

// Forward makes a TCP address that the guest can dial, host:port, reachable on the
// host, until Stop. It returns the address to dial.
func (n *Node) Forward(guestAddress string) (hostAddress string, err error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("forward %s: %w", guestAddress, err)
	}
	n.keep(listener)
	go n.agent.forward(listener, guestAddress)
	return listener.Addr().String(), nil
}

// SetAPIServer stops the API server, or starts it again on the same port.
func (n *Node) SetAPIServer(ctx context.Context, up bool) error {
	return n.plane.setAPIServer(ctx, up)
}

// AuditLog reads what the API server has logged so far, given Options.Audit: an
// audit.k8s.io/v1 Event a line.
func (n *Node) AuditLog() ([]byte, error) { return os.ReadFile(n.plane.path("audit.log")) }

func (n *Node) keep(listener net.Listener) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.listeners = append(n.listeners, listener)
}

// CollectLogs copies every log of the node into a directory that outlives it.
func (n *Node) CollectLogs(ctx context.Context) (dir string, err error) {
	dir, err = os.MkdirTemp("", "memqos-logs-")
	if err != nil {
		return "", fmt.Errorf("collect logs: %w", err)
	}
	logs := []string{filepath.Join(n.dir, consoleLog), filepath.Join(n.dir, "qemu.log")}
	if n.plane != nil {
		logs = append(logs, n.plane.logs()...)
	}
	var failures []error
	for _, path := range logs {
		if err := copyFile(filepath.Join(dir, filepath.Base(path)), path, 0o644); err != nil && !errors.Is(err, fs.ErrNotExist) {
			failures = append(failures, err)
		}
	}
	if n.agent != nil {
		ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
		if data, err := n.ReadFile(ctx, kubeletLog); err == nil {
			failures = append(failures, os.WriteFile(filepath.Join(dir, "kubelet.log"), data, 0o644))
		}
		// A guest that cannot be reached has only its console to show.
		if journal, err := n.Run(ctx, "journalctl", "--no-pager", "--output=short-monotonic"); err == nil {
			failures = append(failures, os.WriteFile(filepath.Join(dir, "journal.log"), []byte(journal), 0o644))
		}
	}
	return dir, errors.Join(failures...)
}

// keepLogs adds to the error of a failed start where its logs are.
func (n *Node) keepLogs(cause error) error {
	dir, err := n.CollectLogs(context.Background())
	if err != nil {
		return errors.Join(cause, err)
	}
	return fmt.Errorf("%w\nlogs of the node: %s", cause, dir)
}

// Stop ends the node and its control plane and removes what the run has left.
// It may be called again.
func (n *Node) Stop() error { return n.stop() }

func (n *Node) tearDown() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, listener := range n.listeners {
		_ = listener.Close() // nothing is buffered
	}
	n.vm.stop()
	n.plane.stop()
	n.vmPort.release()
	defer n.unlock()
	if os.Getenv("MEMQOS_KEEP") != "" {
		n.progress.printf("kept %s", n.dir)
		return os.WriteFile(filepath.Join(n.dir, keepMark), nil, 0o644)
	}
	if err := removeTree(n.dir); err != nil {
		return fmt.Errorf("remove the files of the run: %w", err)
	}
	return nil
}
