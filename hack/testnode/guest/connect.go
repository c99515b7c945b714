package main

import (
	"io"
	"net"
	"net/http"
	"time"
)

// connect joins the request's connection to an address dialled in the guest.
func connect(w http.ResponseWriter, r *http.Request) {
	target, err := (&net.Dialer{Timeout: 30 * time.Second}).DialContext(r.Context(), "tcp", r.Host)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer target.Close() //nolint:errcheck // nothing is buffered
	w.WriteHeader(http.StatusOK)
	client, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return // the peer went away
	}
	defer client.Close() //nolint:errcheck // nothing is buffered
	if err := buffered.Flush(); err != nil {
		return
	}
	done := make(chan struct{}, 2)
	join := func(dst net.Conn, src io.Reader) {
		_, _ = io.Copy(dst, src) // a broken connection ends both directions
		if half, ok := dst.(interface{ CloseWrite() error }); ok {
			_ = half.CloseWrite()
		}
		done <- struct{}{}
	}
	go join(target, buffered)
	go join(client, target)
	<-done
	<-done
}
