package controllers

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/go-logr/logr"

	"github.com/memqos/memqos/cgroup"
	"github.com/memqos/memqos/memory"
	"github.com/memqos/memqos/metrics"
	"github.com/memqos/memqos/qos"
)

// retryDeferred is how soon a lowering of memory.max that was put off is looked
// at again.
const retryDeferred = 10 * time.Second

// change is a file that does not hold what is wanted.
type change struct {
	cgroup   *qos.Cgroup
	file     memory.File
	from, to memory.Value
}

// differences compares what is wanted of cgroups with what their files hold.
// Cgroups that are gone, or have no path yet, have none.
func differences(tree *cgroup.Tree, wanted []qos.Cgroup) ([]change, error) {
	var changes []change
	var errs []error
	for i := range wanted {
		c := &wanted[i]
		if c.Cgroup == "" {
			continue
		}
		for _, file := range memory.Files {
			to, managed := c.Values[file]
			if !managed {
				continue
			}
			from, err := tree.Value(c.Cgroup, file)
			if cgroup.IsGone(err) {
				break
			}
			if err != nil {
				errs = append(errs, err)
				continue
			}
			if from != to {
				changes = append(changes, change{c, file, from, to})
			}
		}
	}
	return changes, errors.Join(errs...)
}

// ordered returns the changes in the order in which they are safe: first what
// raises, from the top of the tree down, so that a child never has more than its
// parent grants; then what lowers, from the bottom up. A lowering of memory.high,
// which may take seconds, so never stands before a raise; among the lowerings it
// comes last.
func ordered(changes []change) []change {
	var out, cuts, slow []change
	for _, c := range changes { // the plan is in top-down order
		switch {
		case c.to > c.from:
			out = append(out, c)
		case c.file == memory.High:
			slow = append([]change{c}, slow...)
		default:
			cuts = append([]change{c}, cuts...)
		}
	}
	return append(append(out, cuts...), slow...)
}

// apply makes the files of the wanted cgroups hold the wanted values. wanted is
// in top-down order. It writes nothing that is already so, and goes on after a
// file that it cannot write. again is when to come back even if nothing happens,
// 0 for not.
func apply(ctx context.Context, log logr.Logger, m *metrics.Metrics, tree *cgroup.Tree, wanted []qos.Cgroup) (again time.Duration, err error) {
	changes, err := differences(tree, wanted)
	errs := []error{err}
	for _, c := range ordered(changes) {
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		result, err := write(tree, c)
		m.Write(string(c.cgroup.Level), c.file, result)
		switch result {
		case metrics.Written:
			log.V(2).Info("wrote", "cgroup", c.cgroup.Cgroup, "file", c.file, "from", c.from.String(), "to", c.to.String(), "reason", c.cgroup.Reason[c.file])
		case metrics.Deferred:
			again = retryDeferred
		case metrics.Gone:
		default:
			errs = append(errs, err)
		}
	}
	return again, errors.Join(errs...)
}

func write(tree *cgroup.Tree, c change) (metrics.Result, error) {
	if c.file == memory.Max && c.to < c.from {
		usage, err := tree.Usage(c.cgroup.Cgroup)
		switch {
		case cgroup.IsGone(err):
			return metrics.Gone, nil
		case err != nil:
			return metrics.Failed, err
		case !limitFits(usage, c.to):
			return metrics.Deferred, nil
		}
	}
	err := tree.Write(c.cgroup.Cgroup, c.file, c.to)
	var notKept *cgroup.NotKeptError
	switch {
	case err == nil:
		return metrics.Written, nil
	case cgroup.IsGone(err):
		return metrics.Gone, nil
	case errors.As(err, &notKept):
		return metrics.NotKept, err
	}
	return metrics.Failed, fmt.Errorf("%s of %s %s/%s %s: %w", c.file, c.cgroup.Level, c.cgroup.Namespace, c.cgroup.Pod, c.cgroup.Container, err)
}

// limitFits reports whether memory.max can be lowered to limit with a sixteenth
// of it to spare. Lowered under what is in use, it would kill: the kernel
// reclaims what it can and then calls the OOM killer until usage fits.
func limitFits(usage, limit memory.Value) bool { return usage <= limit-limit/16 }
