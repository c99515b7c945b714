// Package e2e owns the tests that need a real node: parity with a kubelet whose
// MemoryQoS gate is on, and what memqos does while pods come and go. They boot
// virtual machines and run under the build tag e2e: make test, or make e2e alone.
package e2e
