package main

import (
	"crypto/subtle"
	"flag"
	"log"
	"net/http"
	"os"
	"strings"
	"time"
)

func main() {
	log.SetFlags(0)
	listen := flag.String("listen", ":10", "address to serve on")
	tokenFile := flag.String("token-file", "", "file with the token that every request must carry")
	cgroupRoot := flag.String("make-cgroup-root", "", "instead of serving, make what the kubelet's --cgroup-root needs")
	flag.Parse()

	if *cgroupRoot != "" {
		if err := makeCgroupRoot(cgroupMount, *cgroupRoot); err != nil {
			log.Fatalf("make cgroup root %s: %v", *cgroupRoot, err)
		}
		return
	}
	token, err := os.ReadFile(*tokenFile)
	if err != nil {
		log.Fatalf("read token: %v", err)
	}
	server := &http.Server{
		Addr:              *listen,
		Handler:           authorized(strings.TrimSpace(string(token)), routes()),
		ReadHeaderTimeout: time.Minute,
	}
	log.Fatal(server.ListenAndServe())
}

// routes is written out rather than a ServeMux because CONNECT carries no path.
func routes() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.Method + " " + r.URL.Path {
		case "GET /healthz":
			w.WriteHeader(http.StatusOK)
		case "POST /run":
			run(w, r)
		case "GET /file":
			getFile(w, r)
		case "PUT /file":
			putFile(w, r)
		case "GET /cgroups":
			getCgroups(w, r)
		default:
			if r.Method == http.MethodConnect {
				connect(w, r)
				return
			}
			http.NotFound(w, r)
		}
	})
}

// authorized refuses whoever lacks the token: the agent is root in the guest,
// and its pods reach the port that it listens on.
func authorized(token string, next http.Handler) http.Handler {
	want := []byte("Bearer " + token)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got := []byte(r.Header.Get("Proxy-Authorization"))
		if token == "" || subtle.ConstantTimeCompare(got, want) != 1 {
			http.Error(w, "wrong token", http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}
