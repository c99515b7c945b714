package controllers

import (
	"github.com/go-logr/logr"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/memqos/memqos/cgroup"
	"github.com/memqos/memqos/ledger"
	"github.com/memqos/memqos/memory"
	"github.com/memqos/memqos/metrics"
	"github.com/memqos/memqos/qos"
)

// protects reports whether a file is one that a reflex repairs.
func protects(file memory.File) bool { return file == memory.Min || file == memory.Low }

// reflex answers a reset of protection at once, on the word of the kernel and before
// any reconcile, which may have pods to go through: where memory.min or memory.low holds
// the kernel's default and memqos last wrote something else, it writes that again.
//
// settled says that the file holds what memqos last wrote: nobody has to look at it on
// account of this. What a reflex cannot do is for the reconcile.
func (w *writer) reflex(log logr.Logger, tree *cgroup.Tree, at string, file memory.File) (settled bool) {
	if !protects(file) {
		return false
	}
	dir, err := tree.Open(at)
	if err != nil {
		return false
	}
	defer dir.Close()
	w.protecting.Lock()
	defer w.protecting.Unlock()
	if w.dryRun() || w.kubelet.manages(file) {
		return false
	}
	e, ours := w.ledger.Get(ledger.Key{Inode: dir.Inode, File: file})
	if !ours {
		return false
	}
	now, err := dir.Value(file)
	switch {
	case err != nil:
		return false
	case now == e.Wrote:
		return true
	case now != defaultOf(file):
		return false
	}
	level := levelOf(tree.Layout, at)
	result, _, _ := w.writeNow(tree, ctrl.Request{}, change{&seen{Cgroup: &qos.Cgroup{Level: level, Cgroup: at}, dir: dir}, file, now, e.Wrote})
	if result != metrics.Written {
		return false
	}
	w.metrics.Write(string(level), file, result)
	log.V(2).Info("wrote", "cgroup", at, "file", file, "from", now.String(), "to", e.Wrote.String(), "reason", "was reset")
	return true
}
