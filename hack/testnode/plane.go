package testnode

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"k8s.io/client-go/rest"
)

// ControlPlane is an API server and its etcd without a node, native on the host.
type ControlPlane struct {
	dir    string
	plane  *controlPlane
	unlock func()
}

// StartControlPlane builds what is not cached and returns once the API server is
// ready. version is its Kubernetes version, log where the progress goes.
func StartControlPlane(ctx context.Context, version string, log io.Writer) (_ *ControlPlane, err error) {
	c, err := openCache(newProgress(log))
	if err != nil {
		return nil, err
	}
	root, err := sourceRoot(ctx)
	if err != nil {
		return nil, err
	}
	etcd, err := c.etcd(ctx, root)
	if err != nil {
		return nil, err
	}
	apiServer, err := c.kubernetes(ctx, root, version, "kube-apiserver")
	if err != nil {
		return nil, err
	}
	p := &ControlPlane{}
	if p.dir, p.unlock, err = makeRunDir(ctx, c); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Stop())
		}
	}()
	if p.plane, err = startControlPlane(filepath.Join(p.dir, "control-plane"), Options{Audit: true}, etcd, apiServer); err != nil {
		return nil, err
	}
	return p, p.plane.wait(ctx)
}

// RESTConfig is an administrator's.
func (p *ControlPlane) RESTConfig() *rest.Config { return rest.CopyConfig(p.plane.admin) }

// Kubeconfig is the contents of a kubeconfig for a user and its groups.
func (p *ControlPlane) Kubeconfig(user string, groups ...string) ([]byte, error) {
	return p.plane.authority.kubeconfig(p.plane.hostURL(), user, groups...)
}

// AuditLog is the path of the API server's audit log, of level Metadata.
func (p *ControlPlane) AuditLog() string { return p.plane.path("audit.log") }

// APIServerPID is the process id of the API server that was started last.
func (p *ControlPlane) APIServerPID() int {
	p.plane.mu.Lock()
	defer p.plane.mu.Unlock()
	return p.plane.apiServer.cmd.Process.Pid
}

// SetAPIServer stops the API server, or starts it again on the same port.
func (p *ControlPlane) SetAPIServer(ctx context.Context, up bool) error {
	return p.plane.setAPIServer(ctx, up)
}

// Stop ends both and removes what they have left.
func (p *ControlPlane) Stop() error {
	p.plane.stop()
	defer p.unlock()
	if err := os.RemoveAll(p.dir); err != nil {
		return fmt.Errorf("remove the files of the run: %w", err)
	}
	return nil
}
