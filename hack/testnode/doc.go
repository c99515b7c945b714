// Package testnode owns the test node: a real Kubernetes node in a virtual
// machine, with etcd and the API server native on the host, made from nothing
// but Debian packages and Go modules.
package testnode
