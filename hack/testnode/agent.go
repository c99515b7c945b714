package testnode

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
)

// agentPort is where the guest agent listens in the guest.
const agentPort = 10

// agentFile is where a run's directory says how to reach its guest agent.
const agentFile = "agent.json"

// agent speaks to the guest agent (hack/testnode/guest).
type agent struct {
	Address string `json:"address"` // on the host
	Token   string `json:"token"`
}

func newAgent(port int, token string) *agent {
	return &agent{net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), token}
}

// agentClient opens a connection a request: QEMU accepts connections, and keeps
// them, on behalf of a guest that has gone.
var agentClient = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}

func (a *agent) save(path string) error {
	data, err := json.Marshal(a)
	if err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o600)
}

// Exec runs a command as root in the guest of a node that another process has
// started, given the directory of its run (Node.Dir).
func Exec(ctx context.Context, dir string, stdin io.Reader, stdout io.Writer, argv ...string) error {
	data, err := os.ReadFile(filepath.Join(dir, agentFile))
	if err != nil {
		return fmt.Errorf("find the node: %w", err)
	}
	var a agent
	if err := json.Unmarshal(data, &a); err != nil {
		return fmt.Errorf("find the node: %w", err)
	}
	return a.run(ctx, stdin, stdout, argv...)
}

func (a *agent) request(ctx context.Context, method, path string, query url.Values, header http.Header, body io.Reader) (*http.Response, error) {
	target := url.URL{Scheme: "http", Host: a.Address, Path: path, RawQuery: query.Encode()}
	request, err := http.NewRequestWithContext(ctx, method, target.String(), body)
	if err != nil {
		return nil, err
	}
	if header != nil {
		request.Header = header
	}
	request.Header.Set("Proxy-Authorization", "Bearer "+a.Token)
	response, err := agentClient.Do(request)
	if err != nil {
		return nil, fmt.Errorf("reach the guest agent: %w", err)
	}
	if response.StatusCode/100 == 2 {
		return response, nil
	}
	message, err := io.ReadAll(response.Body)
	err = errors.Join(err, response.Body.Close())
	if response.StatusCode == http.StatusNotFound {
		err = errors.Join(err, fs.ErrNotExist)
	}
	if err != nil {
		return nil, fmt.Errorf("guest: %s: %w", bytes.TrimSpace(message), err)
	}
	return nil, fmt.Errorf("guest: %s", bytes.TrimSpace(message))
}

func (a *agent) healthy(ctx context.Context) error {
	response, err := a.request(ctx, http.MethodGet, "/healthz", nil, nil, nil)
	if err != nil {
		return err
	}
	return response.Body.Close()
}

// RunError is a command in the guest that did not succeed.
type RunError struct {
	Argv     []string
	ExitCode int // 128 + signal when a signal ended it
	Stderr   string
}

func (e *RunError) Error() string {
	return fmt.Sprintf("run %s in the guest: exit code %d: %s", strings.Join(e.Argv, " "), e.ExitCode, strings.TrimSpace(e.Stderr))
}

// Kinds of frames in the answer to a run; see hack/testnode/guest/run.go.
const (
	frameStdout  = 1
	frameStderr  = 2
	frameExit    = 3
	frameFailure = 4
)

// run runs a command. The command dies when ctx ends.
func (a *agent) run(ctx context.Context, stdin io.Reader, stdout io.Writer, argv ...string) (err error) {
	encoded, err := json.Marshal(argv)
	if err != nil {
		return err
	}
	header := http.Header{"Command": {base64.StdEncoding.EncodeToString(encoded)}}
	response, err := a.request(ctx, http.MethodPost, "/run", nil, header, stdin)
	if err != nil {
		return fmt.Errorf("run %s in the guest: %w", strings.Join(argv, " "), err)
	}
	defer func() { err = errors.Join(err, response.Body.Close()) }()
	var stderr bytes.Buffer
	body := bufio.NewReader(response.Body)
	for {
		kind, data, err := readFrame(body)
		if err != nil {
			return fmt.Errorf("run %s in the guest: %w", strings.Join(argv, " "), err)
		}
		switch kind {
		case frameStdout:
			if _, err := stdout.Write(data); err != nil {
				return err
			}
		case frameStderr:
			stderr.Write(data)
		case frameExit:
			code, err := strconv.Atoi(string(data))
			if err != nil {
				return fmt.Errorf("read an exit code: %w", err)
			}
			if code != 0 {
				return &RunError{argv, code, stderr.String()}
			}
			return nil
		case frameFailure:
			return fmt.Errorf("run %s in the guest: %s", strings.Join(argv, " "), data)
		default:
			return fmt.Errorf("guest agent sent a frame of kind %d", kind)
		}
	}
}

func readFrame(r io.Reader) (kind byte, data []byte, err error) {
	var header [5]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return 0, nil, err
	}
	data = make([]byte, binary.BigEndian.Uint32(header[1:]))
	_, err = io.ReadFull(r, data)
	return header[0], data, err
}

func (a *agent) readFile(ctx context.Context, path string) ([]byte, error) {
	response, err := a.request(ctx, http.MethodGet, "/file", url.Values{"path": {path}}, nil, nil)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	data, err := io.ReadAll(response.Body)
	return data, errors.Join(err, response.Body.Close())
}

func (a *agent) writeFile(ctx context.Context, path string, mode os.FileMode, content io.Reader) error {
	query := url.Values{"path": {path}, "mode": {strconv.FormatUint(uint64(mode.Perm()), 8)}}
	// Wrapped, because a request closes its body, and content is not ours.
	response, err := a.request(ctx, http.MethodPut, "/file", query, nil, io.NopCloser(content))
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return response.Body.Close()
}

func (a *agent) cgroups(ctx context.Context) (map[string]map[string]string, error) {
	response, err := a.request(ctx, http.MethodGet, "/cgroups", nil, nil, nil)
	if err != nil {
		return nil, fmt.Errorf("snapshot the cgroups: %w", err)
	}
	var snapshot map[string]map[string]string
	err = json.NewDecoder(response.Body).Decode(&snapshot)
	return snapshot, errors.Join(err, response.Body.Close())
}

// dial connects to an address in the guest.
func (a *agent) dial(ctx context.Context, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", a.Address)
	if err != nil {
		return nil, fmt.Errorf("reach the guest agent: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	reader := bufio.NewReader(conn)
	_, err = fmt.Fprintf(conn, "CONNECT %s HTTP/1.1\r\nHost: %s\r\nProxy-Authorization: Bearer %s\r\n\r\n", address, address, a.Token)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("dial %s in the guest: %w", address, err), conn.Close())
	}
	response, err := http.ReadResponse(reader, &http.Request{Method: http.MethodConnect}) //nolint:bodyclose // the answer to CONNECT has none: what follows is the connection
	if err == nil && response.StatusCode != http.StatusOK {
		err = errors.New(response.Status)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("dial %s in the guest: %w", address, err), conn.Close())
	}
	return bufferedConn{conn, reader}, nil
}

// bufferedConn is a connection whose first bytes may have been read already.
type bufferedConn struct {
	net.Conn
	reader *bufio.Reader
}

func (c bufferedConn) Read(p []byte) (int, error) { return c.reader.Read(p) }

func (c bufferedConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Close()
}

// join copies both ways until both sides are done.
func join(a, b net.Conn) {
	var both sync.WaitGroup
	both.Go(func() { copyHalf(a, b) })
	both.Go(func() { copyHalf(b, a) })
	both.Wait()
	_, _ = a.Close(), b.Close() // nothing is buffered
}

func copyHalf(dst, src net.Conn) {
	_, _ = io.Copy(dst, src) // a broken connection is an end like any other
	if half, ok := dst.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	}
}

// forward listens on the host and joins every connection to an address in the
// guest, until the listener is closed.
func (a *agent) forward(listener net.Listener, address string) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		go func() {
			target, err := a.dial(context.Background(), address)
			if err != nil {
				_ = conn.Close() // as a closed port would
				return
			}
			join(conn, target)
		}()
	}
}

// serveEgress answers the CONNECT requests of the API server, which knows no
// token, until the listener is closed.
func (a *agent) serveEgress(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		go func() {
			reader := bufio.NewReader(conn)
			request, err := http.ReadRequest(reader)
			if err != nil || request.Method != http.MethodConnect {
				_ = conn.Close()
				return
			}
			target, err := a.dial(context.Background(), request.Host)
			if err != nil {
				_, _ = fmt.Fprintf(conn, "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
				_ = conn.Close()
				return
			}
			_, _ = fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\n\r\n") // a lost peer shows in join
			join(bufferedConn{conn, reader}, target)
		}()
	}
}
