package controllers

import (
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/memqos/memqos/cgroup"
	"github.com/memqos/memqos/memory"
	"github.com/memqos/memqos/metrics"
	"github.com/memqos/memqos/qos"
)

// protects reports whether a file is one that a reflex repairs.
func protects(file memory.File) bool { return file == memory.Min || file == memory.Low }

// reflex answers a reset of protection at once, on the word of the kernel and before
// the reconcile that it sets off, which may have pods to go through: where memory.min
// or memory.low holds the kernel's default and memqos last wrote something else, it
// writes that again. What it cannot do, and what is wanted by now, is for the reconcile.
func (w *writer) reflex(tree *cgroup.Tree, at string, file memory.File) {
	if !protects(file) || w.dryRun() || w.kubelet.manages(file) {
		return
	}
	dir, err := tree.Open(at)
	if err != nil {
		return
	}
	defer dir.Close()
	w.protecting.Lock()
	defer w.protecting.Unlock()
	c := change{seen: &seen{Cgroup: &qos.Cgroup{Level: levelOf(tree.Layout, at), Cgroup: at}, dir: dir}, file: file, from: defaultOf(file)}
	e, ours := w.ledger.Get(c.key())
	if !ours || e.Wrote == c.from {
		return
	}
	c.to = e.Wrote
	if now, err := dir.Value(file); err != nil || now != c.from {
		return
	}
	if result, _, _ := w.writeNow(tree, ctrl.Request{}, c); result == metrics.Written {
		w.metrics.Write(string(c.Level), file, result)
	}
}
