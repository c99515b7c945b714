package testnode

import (
	"net"
	"strconv"
	"testing"
)

func TestReservedPortCanBeListenedOnAgain(t *testing.T) {
	port, err := reservePort()
	if err != nil {
		t.Fatal(err)
	}
	defer port.release()
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(port.number))
	for range 2 {
		if conn, err := net.Dial("tcp", address); err == nil {
			t.Errorf("a reserved port accepts: %v", conn.Close())
		}
		listener, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		if err := listener.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
