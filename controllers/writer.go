package controllers

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/go-logr/logr"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/memqos/memqos/cgroup"
	"github.com/memqos/memqos/ledger"
	"github.com/memqos/memqos/memory"
	"github.com/memqos/memqos/metrics"
	"github.com/memqos/memqos/qos"
)

// retryDeferred is how soon a lowering of memory.max that was put off is looked
// at again.
const retryDeferred = 10 * time.Second

// seen is a cgroup that was looked at: what is wanted of it, and what its files
// hold.
type seen struct {
	*qos.Cgroup
	dir *cgroup.Dir
	has [len(fileOrder)]memory.Value // by place in fileOrder; of files not read: 0
}

// fileOrder is the order of memory.Files, as an array.
var fileOrder = [...]memory.File{memory.Min, memory.Low, memory.High, memory.Max}

// holds is what a file held. It is for files that look has read.
func (s *seen) holds(file memory.File) memory.Value {
	for i, f := range fileOrder {
		if f == file {
			return s.has[i]
		}
	}
	return 0
}

// look opens the wanted cgroups and reads their managed files, and of pods those
// that show whether a kubelet protects. Those that are gone, or have no path yet,
// are left out. The caller closes what it gets.
func look(tree *cgroup.Tree, wanted []qos.Cgroup) ([]seen, error) {
	out := make([]seen, 0, len(wanted))
	var errs []error
	for i := range wanted {
		if wanted[i].Cgroup == "" {
			continue
		}
		s, err := lookAt(tree, &wanted[i])
		switch {
		case err == nil:
			out = append(out, s)
		case !cgroup.IsGone(err):
			errs = append(errs, err)
		}
	}
	return out, errors.Join(errs...)
}

func lookAt(tree *cgroup.Tree, c *qos.Cgroup) (seen, error) {
	dir, err := tree.Open(c.Cgroup)
	if err != nil {
		return seen{}, err
	}
	s := seen{Cgroup: c, dir: dir}
	for i, file := range fileOrder {
		_, managed := c.Values[file]
		if !managed && (c.Level == qos.LevelContainer || (file != memory.Min && file != memory.Low)) {
			continue
		}
		if s.has[i], err = dir.Value(file); err != nil {
			dir.Close()
			return seen{}, err
		}
	}
	return s, nil
}

func closeAll(cgroups []seen) {
	for i := range cgroups {
		cgroups[i].dir.Close()
	}
}

// newborn is the age up to which a cgroup counts as new. A new one is about to be
// given its memory.max by the kubelet or the runtime; an older one was there before
// memqos.
const newborn = 10 * time.Second

// change is a file that does not hold what is wanted.
type change struct {
	*seen
	file     memory.File
	from, to memory.Value
}

func (c *change) key() ledger.Key { return ledger.Key{Inode: c.dir.Inode, File: c.file} }

// differences lists the files that do not hold what is wanted.
func differences(cgroups []seen) []change {
	var changes []change
	for i := range cgroups {
		s := &cgroups[i]
		for j, file := range fileOrder {
			if to, managed := s.Values[file]; managed && s.has[j] != to {
				changes = append(changes, change{s, file, s.has[j], to})
			}
		}
	}
	return changes
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

// writer makes files hold what is wanted. It is the one place that writes.
type writer struct {
	ledger   *ledger.Ledger
	metrics  *metrics.Metrics
	contests *contests
	kubelet  *kubeletFeature
	landings *landings
	guard    *stallGuard
	history  *history
	now      func() time.Time
	// dryRun: nothing is written.
	dryRun func() bool
	// would is what was said of a dry run, so that it is said once.
	would sync.Map // ledger.Key to memory.Value
	// protecting is held while memory.min or memory.low is compared with the ledger and
	// written, so that a reflex and a reconcile do not repair one reset twice. Such a
	// write does not reclaim, so nobody waits for long.
	protecting sync.Mutex
}

// outcome is what came of applying, beside errors.
type outcome struct {
	// again is when to come back even if nothing happens; 0 is never.
	again time.Duration
	// pending are lowerings of memory.max that wait for usage to fall.
	pending []change
	// contested are files that somebody else keeps writing.
	contested []change
	// left are all that do not hold what is wanted, these included.
	left []change
}

func (o *outcome) comeBack(after time.Duration) {
	if o.again == 0 || after < o.again {
		o.again = after
	}
}

// apply makes the files hold what is wanted of them. cgroups is in top-down
// order. It writes nothing that is already so, and goes on after a file that it
// cannot write.
func (w *writer) apply(ctx context.Context, log logr.Logger, tree *cgroup.Tree, request ctrl.Request, cgroups []seen) (outcome, error) {
	var o outcome
	errs := []error{w.giveBack(cgroups)}
	for _, c := range ordered(differences(cgroups)) {
		if ctx.Err() != nil {
			return o, ctx.Err()
		}
		if w.kubelet.manages(c.file) {
			continue
		}
		if age := w.now().Sub(c.dir.Changed); c.file == memory.Max && age < newborn {
			o.comeBack(newborn - age)
			continue
		}
		result, again, err := w.write(tree, request, c)
		if result == alreadyHeld {
			continue
		}
		w.metrics.Write(string(c.Level), c.file, result)
		switch result {
		case metrics.Written:
			log.V(2).Info("wrote", "cgroup", c.Cgroup.Cgroup, "file", c.file, "from", c.from.String(), "to", c.to.String(), "reason", c.Reason[c.file])
		case metrics.DryRun:
			if said, ok := w.would.Swap(c.key(), c.to); !ok || said != c.to {
				log.Info("would write", "cgroup", c.Cgroup.Cgroup, "file", c.file, "from", c.from.String(), "to", c.to.String(), "reason", c.Reason[c.file])
			}
		case metrics.Deferred:
			o.pending = append(o.pending, c)
		case metrics.Contested:
			o.contested = append(o.contested, c)
		case metrics.Failed, metrics.NotKept:
			errs = append(errs, err)
		}
		if result != metrics.Written && result != metrics.Gone {
			o.left = append(o.left, c)
		}
		if again > 0 {
			o.comeBack(again)
		}
	}
	return o, errors.Join(errs...)
}

// giveBack puts back what was in files that are not memqos's any more: of a pod that
// is excluded by now, or a release that does not write them.
func (w *writer) giveBack(cgroups []seen) error {
	if w.dryRun() {
		return nil
	}
	w.protecting.Lock() // until it is forgotten: a reflex would take it for a reset
	err := w.giveBackFiles(cgroups, memory.Min, memory.Low)
	w.protecting.Unlock()
	return errors.Join(err, w.giveBackFiles(cgroups, memory.High, memory.Max))
}

func (w *writer) giveBackFiles(cgroups []seen, files ...memory.File) error {
	var errs []error
	var done []ledger.Key
	for i := range cgroups {
		s := &cgroups[i]
		for _, file := range files {
			if _, managed := s.Values[file]; managed || slices.Contains(s.Waits, file) {
				continue
			}
			key := ledger.Key{Inode: s.dir.Inode, File: file}
			e, ours := w.ledger.Get(key)
			if !ours {
				continue
			}
			if file == memory.High {
				w.landings.cancel(s.dir.Inode)
			}
			now, err := s.dir.Value(file)
			if err == nil && now == e.Wrote && now != e.Original {
				err = put(s.dir, file, now, e.Original)
			}
			if err != nil && !cgroup.IsGone(err) {
				errs = append(errs, err)
				continue
			}
			done = append(done, key)
		}
	}
	if len(done) > 0 {
		errs = append(errs, w.ledger.Forget(done...))
	}
	return errors.Join(errs...)
}

// alreadyHeld is the result where there was nothing to write any more.
const alreadyHeld metrics.Result = ""

// write makes one change. again is when to come back to it, 0 for never.
func (w *writer) write(tree *cgroup.Tree, request ctrl.Request, c change) (_ metrics.Result, again time.Duration, _ error) {
	if protects(c.file) {
		w.protecting.Lock()
		defer w.protecting.Unlock()
		if e, ours := w.ledger.Get(c.key()); ours && e.Wrote != c.from {
			// A reflex may have been first.
			switch now, err := c.dir.Value(c.file); {
			case err == nil && now == c.to:
				return alreadyHeld, 0, nil
			case err == nil && now == e.Wrote:
				c.from = now
			}
		}
	}
	return w.writeNow(tree, request, c)
}

func (w *writer) writeNow(tree *cgroup.Tree, request ctrl.Request, c change) (_ metrics.Result, again time.Duration, _ error) {
	if c.file == memory.Max && c.to < c.from {
		usage, err := c.dir.Usage()
		switch {
		case cgroup.IsGone(err):
			return metrics.Gone, 0, nil
		case err != nil:
			return metrics.Failed, 0, err
		case !limitFits(usage, c.to):
			return metrics.Deferred, retryDeferred, nil
		}
	}
	if w.dryRun() {
		return metrics.DryRun, 0, nil
	}
	// What somebody wrote over a value of ours is repaired, but not for ever.
	e, ours := w.ledger.Get(c.key())
	if ours && e.Wrote != c.from {
		cause := causeOf(c)
		wait, contested := w.contests.repair(c.key(), cause == metrics.Reset && c.Level != qos.LevelPod && c.Level != qos.LevelContainer)
		switch {
		case contested:
			return metrics.Contested, wait, nil
		case wait > 0:
			return metrics.BackedOff, wait, nil
		}
		w.metrics.Repair(string(c.Level), c.file, cause)
		w.history.overwritten(c, e.Wrote, cause)
	}
	if c.file == memory.High {
		usage, err := c.dir.Usage()
		if err == nil && c.to < c.from && usage > c.to {
			w.landings.lower(tree, &c, request)
			return metrics.Landing, retryDeferred, nil
		}
		w.landings.cancel(c.dir.Inode) // a raise overtakes
	}
	if err := w.ledger.Before(c.key(), c.Cgroup.Cgroup, c.from, c.to); err != nil {
		// Without a way back there is no way in.
		return metrics.Failed, 0, err
	}
	err := c.dir.Write(c.file, c.to)
	var notKept *cgroup.NotKeptError
	switch {
	case err == nil:
		w.history.wrote(c.dir, c.file, c.from, c.to)
		if age := w.now().Sub(c.dir.Changed); !ours && c.Level == qos.LevelContainer && age < newborn {
			w.metrics.TimeToValue(age.Seconds())
		}
		return metrics.Written, 0, nil
	case cgroup.IsGone(err):
		return metrics.Gone, 0, nil
	case errors.As(err, &notKept):
		return metrics.NotKept, 0, err
	}
	return metrics.Failed, 0, fmt.Errorf("%s of %s %s/%s %s: %w", c.file, c.Level, c.Namespace, c.Pod, c.Container, err)
}

// causeOf tells who wrote over a value, as far as the value shows: the kernel's
// default comes of systemd and of a runtime's update, which reset what they do
// not know.
func causeOf(c change) metrics.Cause {
	if c.from == defaultOf(c.file) {
		return metrics.Reset
	}
	return metrics.Foreign
}

// defaultOf is what the kernel gives a new cgroup.
func defaultOf(file memory.File) memory.Value {
	if file == memory.High || file == memory.Max {
		return memory.Unlimited
	}
	return 0
}

// limitFits reports whether memory.max can be lowered to limit with a sixteenth
// of it to spare. Lowered under what is in use, it would kill: the kernel
// reclaims what it can and then calls the OOM killer until usage fits.
func limitFits(usage, limit memory.Value) bool { return usage <= limit-limit/16 }
