package testnode

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// Addresses of QEMU's user network, as the guest sees it.
const (
	hostInGuest  = "10.0.2.2" // the host's 127.0.0.1
	guestAddress = "10.0.2.15"
	nameserver   = "10.0.2.3"
	serviceCIDR  = "10.96.0.0/16"
	firstService = "10.96.0.1" // of the Service "kubernetes"
)

// controlPlane is etcd and the API server, native on the host.
type controlPlane struct {
	dir       string
	port      *port
	authority *authority
	admin     *rest.Config

	etcd      *process
	apiServer *process
	// controllers are what runs beside it; none unless they are asked for.
	controllers []*process
	argv        []string // the API server's, for a restart
	mu          sync.Mutex
}

// startControlPlane starts both and returns at once; wait tells when they serve.
func startControlPlane(dir string, o Options, etcdBinary, apiServerBinary string) (_ *controlPlane, err error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	c := &controlPlane{dir: dir}
	defer func() {
		if err != nil {
			c.stop()
		}
	}()
	if c.port, err = reservePort(); err != nil {
		return nil, err
	}
	if c.authority, err = newAuthority(); err != nil {
		return nil, err
	}
	pair, err := c.authority.client("admin", "system:masters")
	if err != nil {
		return nil, err
	}
	c.admin = &rest.Config{
		Host:            c.hostURL(),
		TLSClientConfig: rest.TLSClientConfig{CAData: c.authority.pem, CertData: pair.certificate, KeyData: pair.key},
		QPS:             100, Burst: 200,
		WarningHandler: rest.NoWarnings{}, // tests apply odd objects on purpose
	}
	if err := c.writeFiles(); err != nil {
		return nil, fmt.Errorf("write the control plane's files: %w", err)
	}

	// A socket rather than a port: nobody else on the machine gets at it.
	socket := "unix://" + filepath.Join(dir, "etcd.sock")
	c.etcd, err = startProcess("etcd", filepath.Join(dir, "etcd.log"), etcdBinary,
		"--data-dir="+filepath.Join(dir, "etcd"), "--unsafe-no-fsync", "--log-level=warn",
		"--listen-client-urls="+socket, "--advertise-client-urls=http://localhost:1",
		"--listen-peer-urls=unix://"+filepath.Join(dir, "peer.sock"),
		"--initial-advertise-peer-urls=http://localhost:1", "--initial-cluster=default=http://localhost:1")
	if err != nil {
		return nil, err
	}
	c.argv = append([]string{apiServerBinary}, c.apiServerFlags(socket, o)...)
	return c, c.startAPIServer()
}

func (c *controlPlane) path(name string) string { return filepath.Join(c.dir, name) }

func (c *controlPlane) hostURL() string { return fmt.Sprintf("https://127.0.0.1:%d", c.port.number) }

func (c *controlPlane) guestURL() string {
	return fmt.Sprintf("https://%s:%d", hostInGuest, c.port.number)
}

func (c *controlPlane) writeFiles() error {
	serving, err := c.authority.server("kube-apiserver", "127.0.0.1", hostInGuest, firstService,
		"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc")
	if err != nil {
		return err
	}
	kubeletClient, err := c.authority.client("kube-apiserver", "system:masters")
	if err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	accountKey, err := encodeKey(key)
	if err != nil {
		return err
	}
	for name, data := range map[string][]byte{
		"ca.crt":              c.authority.pem,
		"server.crt":          serving.certificate,
		"server.key":          serving.key,
		"kubelet-client.crt":  kubeletClient.certificate,
		"kubelet-client.key":  kubeletClient.key,
		"service-account.key": accountKey,
		"egress.yaml":         fmt.Appendf(nil, egressSelector, c.egressSocket()),
		"audit.yaml":          []byte(auditPolicy),
	} {
		if _, err := c.write(name, data); err != nil {
			return err
		}
	}
	return nil
}

// write writes a file of the control plane, and returns its path.
func (c *controlPlane) write(name string, data []byte) (string, error) {
	return c.path(name), os.WriteFile(c.path(name), data, 0o600)
}

// egressSelector sends what the API server dials in the cluster, the kubelet
// above all, through the guest agent: the guest's addresses are its own.
const egressSelector = `apiVersion: apiserver.k8s.io/v1beta1
kind: EgressSelectorConfiguration
egressSelections:
- name: cluster
  connection:
    proxyProtocol: HTTPConnect
    transport:
      uds:
        udsName: %s
`

const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
`

func (c *controlPlane) egressSocket() string { return c.path("egress.sock") }

func (c *controlPlane) apiServerFlags(etcd string, o Options) []string {
	flags := []string{
		"--etcd-servers=" + etcd,
		"--bind-address=127.0.0.1",
		fmt.Sprintf("--secure-port=%d", c.port.number),
		// What the Service "kubernetes" points to; a loopback address is refused.
		"--advertise-address=" + hostInGuest,
		"--tls-cert-file=" + c.path("server.crt"),
		"--tls-private-key-file=" + c.path("server.key"),
		"--client-ca-file=" + c.path("ca.crt"),
		"--kubelet-client-certificate=" + c.path("kubelet-client.crt"),
		"--kubelet-client-key=" + c.path("kubelet-client.key"),
		"--kubelet-certificate-authority=" + c.path("ca.crt"),
		"--kubelet-preferred-address-types=InternalIP",
		"--egress-selector-config-file=" + c.path("egress.yaml"),
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + c.path("service-account.key"),
		"--service-account-signing-key-file=" + c.path("service-account.key"),
		"--service-cluster-ip-range=" + serviceCIDR,
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction",
		"--allow-privileged=true",
		"--profiling=false",
		// Left over connections must not hold up a restart.
		"--shutdown-delay-duration=0s",
	}
	if !o.Controllers {
		// Then nothing makes service accounts or removes the taint of a node that
		// was not ready yet: that is the controller manager's work.
		flags = append(flags, "--disable-admission-plugins=ServiceAccount,TaintNodesByCondition")
	}
	if o.Audit {
		flags = append(flags, "--audit-policy-file="+c.path("audit.yaml"), "--audit-log-path="+c.path("audit.log"))
	}
	return flags
}

func (c *controlPlane) startAPIServer() (err error) {
	c.apiServer, err = startProcess("kube-apiserver", c.path("kube-apiserver.log"), c.argv...)
	return err
}

// setAPIServer stops or starts the API server, on the same port.
func (c *controlPlane) setAPIServer(ctx context.Context, up bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	running := c.apiServer.exited() == nil
	switch {
	case up && !running:
		if err := c.startAPIServer(); err != nil {
			return err
		}
		return c.wait(ctx)
	case !up && running:
		// An outage, not a farewell: a graceful end would wait for watches.
		c.apiServer.stop()
	}
	return nil
}

// wait returns once the API server is ready and has made its namespaces.
func (c *controlPlane) wait(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, apiDeadline)
	defer cancel()
	clients, err := kubernetes.NewForConfig(c.admin)
	if err != nil {
		return fmt.Errorf("make an API client: %w", err)
	}
	var last error
	for {
		for _, p := range []*process{c.etcd, c.apiServer} {
			if err := p.exited(); err != nil {
				return err
			}
		}
		if last = probe(ctx, clients); last == nil {
			return nil
		}
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return fmt.Errorf("wait for the API server: %w (%w); see %s", err, last, filepath.Base(c.apiServer.log))
		}
	}
}

func probe(ctx context.Context, clients kubernetes.Interface) error {
	if err := clients.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error(); err != nil {
		return err
	}
	for _, namespace := range []string{metav1.NamespaceDefault, metav1.NamespaceSystem} {
		if _, err := clients.CoreV1().Namespaces().Get(ctx, namespace, metav1.GetOptions{}); err != nil {
			if errors.IsNotFound(err) {
				return fmt.Errorf("namespace %s is not there yet", namespace)
			}
			return err
		}
	}
	return nil
}

func (c *controlPlane) stop() {
	if c == nil {
		return
	}
	// There is nothing to save: the data goes with the directory.
	for _, p := range c.controllers {
		p.stop()
	}
	c.apiServer.stop()
	c.etcd.stop()
	c.port.release()
}

// logs are the files worth keeping.
func (c *controlPlane) logs() []string {
	var logs []string
	for _, name := range []string{"etcd.log", "kube-apiserver.log", "kube-controller-manager.log", "kube-scheduler.log", "audit.log"} {
		if exists(c.path(name)) {
			logs = append(logs, c.path(name))
		}
	}
	return logs
}

// pause sleeps for as long as ctx allows.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// minor is the 27 of "1.27.4", or 0.
func minor(version string) int {
	var major, minor int
	if n, err := fmt.Sscanf(strings.TrimPrefix(version, "v"), "%d.%d", &major, &minor); err != nil || n != 2 {
		return 0
	}
	return minor
}
