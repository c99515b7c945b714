// Package footprint owns the measurement of what the agent costs: memory, idle
// processor time, watches, requests, and system calls of a repair, beside a manager
// that does nothing; and what a real Prometheus makes of it. It runs natively, against
// a real API server and a tree of ordinary files, and under the build tag e2e: make
// footprint, make api, make prometheus.
package footprint
