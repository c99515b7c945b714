package controllers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/memqos/memqos/page"
	"github.com/memqos/memqos/status"
)

// StatusSocket is the name of the socket in the state directory on which an agent
// answers those who may enter that directory.
const StatusSocket = "status.sock"

// askers is how many get a status at the same time: each costs a read of every file.
const askers = 2

// ask is status for strangers: a few at a time.
func (a *agent) ask(ctx context.Context, namespace, pod string) (*status.NodeStatus, error) {
	select {
	case a.asking <- struct{}{}:
		defer func() { <-a.asking }()
	case <-ctx.Done():
		return nil, errBusy
	}
	return a.status(ctx, namespace, pod)
}

// serve serves the status at an address until the context ends. An address that
// cannot be had is no reason to leave the node unserved.
func (a *agent) serve(ctx context.Context, network, address string) {
	listener, err := net.Listen(network, address)
	if err == nil && network == "unix" {
		err = os.Chmod(address, 0o600)
	}
	if err != nil {
		a.surveyor.log.Error(err, "the status is not served", "address", address)
		return
	}
	server := &http.Server{
		Handler:           page.Handler(a.ask, isLoopback(listener.Addr())),
		ReadHeaderTimeout: 5 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    32 << 10,
	}
	go func() {
		<-ctx.Done()
		_ = server.Close()
	}()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		a.surveyor.log.Error(err, "the status is served no more", "address", address)
	}
}

// serveSocket serves in the state directory, which must be the agent's own by then:
// another agent's socket is left alone.
func (a *agent) serveSocket(ctx context.Context) {
	path := filepath.Join(a.options.Config.StateDir, StatusSocket)
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() == os.ModeSocket {
		_ = os.Remove(path) // left by an agent that was killed
	}
	a.serve(ctx, "unix", path)
}

func isLoopback(addr net.Addr) bool {
	tcp, ok := addr.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
}

// ErrNoAgent says that no agent answers in a state directory.
var ErrNoAgent = errors.New("no agent answers on this node")

// Ask asks the agent whose state directory this is.
func Ask(ctx context.Context, stateDir string) (*status.NodeStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	socket := filepath.Join(stateDir, StatusSocket)
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost/status", nil)
	if err != nil {
		return nil, err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoAgent, err)
	}
	defer resp.Body.Close() //nolint:errcheck // read only
	body, err := io.ReadAll(io.LimitReader(resp.Body, status.MaxSize))
	if err != nil {
		return nil, fmt.Errorf("read the agent's answer: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the agent answers %s: %s", resp.Status, strings.TrimSpace(string(body)))
	}
	return status.Parse(body)
}
