package testnode

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// port is a TCP port on 127.0.0.1 that is kept for one node. A socket that is
// bound with SO_REUSEADDR but does not listen keeps the kernel from giving the
// port to others, and still lets a child that knows the number listen on it, as
// often as it is restarted.
type port struct {
	number int
	socket int
}

func reservePort() (_ *port, err error) {
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("reserve a port: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("reserve a port: %w", err), unix.Close(socket))
		}
	}()
	if err := unix.SetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return nil, err
	}
	if err := unix.Bind(socket, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return nil, err
	}
	name, err := unix.Getsockname(socket)
	if err != nil {
		return nil, err
	}
	inet, ok := name.(*unix.SockaddrInet4)
	if !ok {
		return nil, fmt.Errorf("socket has address %T", name)
	}
	return &port{inet.Port, socket}, nil
}

func (p *port) release() {
	if p != nil {
		_ = unix.Close(p.socket) // nothing is buffered
	}
}
