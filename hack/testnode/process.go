package testnode

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// process is a child that runs as long as the node does and never outlives us.
type process struct {
	name string
	log  string // path of its output
	cmd  *exec.Cmd
	done chan struct{}
	err  error // valid once done is closed
}

// startProcess runs argv with its output appended to the file log.
func startProcess(name, log string, argv ...string) (*process, error) {
	output, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = output, output
	// Its own process group: a terminal's Ctrl-C reaches us alone, and we stop
	// the children in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	p := &process{name: name, log: log, cmd: cmd, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		// The kernel delivers Pdeathsig when the THREAD that forked ends
		// (golang/go#27505), so that thread has to stay.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			p.err = cmd.Wait()
		}
		if err := output.Close(); p.err == nil {
			p.err = err
		}
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return p, nil
}

// exited returns an error that names the log once the process has ended.
func (p *process) exited() error {
	select {
	case <-p.done:
		return fmt.Errorf("%s exited: %w; see %s:\n%s", p.name, orSuccess(p.err), filepath.Base(p.log), tail(p.log, 15))
	default:
		return nil
	}
}

func orSuccess(err error) error {
	if err == nil {
		return errors.New("with status 0")
	}
	return err
}

// stop kills the process and what it has started, and waits.
func (p *process) stop() {
	if p == nil {
		return
	}
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) // ESRCH: already gone
	<-p.done
}

// command runs a tool to its end. The error has the end of what it printed.
func command(ctx context.Context, env []string, argv ...string) error {
	_, err := commandOutput(ctx, env, argv...)
	return err
}

// commandOutput is command that returns the standard output.
func commandOutput(ctx context.Context, env []string, argv ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	runtime.LockOSThread() // see startProcess
	defer runtime.UnlockOSThread()
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		output := lastLines(stderr.String(), 20)
		if output == "" {
			output = lastLines(stdout.String(), 20) // debootstrap and apt report there
		}
		return nil, fmt.Errorf("%s: %w\n%s", strings.Join(argv, " "), err, output)
	}
	return stdout.Bytes(), nil
}

func tail(path string, lines int) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return lastLines(string(data), lines)
}

func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
