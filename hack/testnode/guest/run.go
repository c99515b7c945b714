package main

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"syscall"
)

// The answer to a run is a sequence of frames: one byte of kind, four bytes of
// big-endian length, the data. The last frame is an exit code or a failure.
const (
	frameStdout  = 1
	frameStderr  = 2
	frameExit    = 3 // decimal exit code
	frameFailure = 4 // why the command could not be run at all
)

// frames multiplexes both output streams onto one response.
type frames struct {
	mu sync.Mutex
	w  http.ResponseWriter
}

func (f *frames) send(kind byte, data []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	header := make([]byte, 5, 5+len(data))
	header[0] = kind
	binary.BigEndian.PutUint32(header[1:], uint32(len(data)))
	if _, err := f.w.Write(append(header, data...)); err != nil {
		return err
	}
	return http.NewResponseController(f.w).Flush()
}

type stream struct {
	frames *frames
	kind   byte
}

func (s stream) Write(p []byte) (int, error) {
	if err := s.frames.send(s.kind, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// run executes the argv in the Command header (base64 of a JSON list) with the
// request's body as its standard input. The command dies with the request.
func run(w http.ResponseWriter, r *http.Request) {
	var argv []string
	encoded, err := base64.StdEncoding.DecodeString(r.Header.Get("Command"))
	if err == nil {
		err = json.Unmarshal(encoded, &argv)
	}
	if err != nil || len(argv) == 0 {
		http.Error(w, "no command", http.StatusBadRequest)
		return
	}
	// A command may print before it has read all of its input.
	if err := http.NewResponseController(w).EnableFullDuplex(); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	out := &frames{w: w}
	cmd := exec.CommandContext(r.Context(), argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), r.Header.Values("Environment")...)
	cmd.Stdout, cmd.Stderr = stream{out, frameStdout}, stream{out, frameStderr}
	if r.ContentLength != 0 {
		cmd.Stdin = r.Body
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }

	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil || errors.As(err, &exit):
		code := cmd.ProcessState.ExitCode()
		if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			code = 128 + int(status.Signal())
		}
		_ = out.send(frameExit, strconv.AppendInt(nil, int64(code), 10)) // a lost peer has no use for it
	default:
		_ = out.send(frameFailure, []byte(err.Error()))
	}
}
