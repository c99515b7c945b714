package controllers

import (
	"context"
	"os"
	"sync"
	"time"

	"github.com/go-logr/logr"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/memqos/memqos/cgroup"
	"github.com/memqos/memqos/ledger"
	"github.com/memqos/memqos/memory"
	"github.com/memqos/memqos/metrics"
)

// A memory.high that falls below what is in use makes the kernel reclaim the
// difference in the writer, for seconds if the memory is busy, and where it finds
// nothing to reclaim it leaves the container throttled. So such a lowering is a
// landing: a few containers of the node at a time, in small steps, each as far as
// reclaim has followed, and back up again if it does not.
const (
	landingWorkers = 2
	// landingShare of what is in use is the most that one step asks to be reclaimed.
	landingShare = 32
	// landingMargin of memory.high is the over-use that the kernel does not punish
	// with sleep: at 1/80 the delay is below the 10 ms that it leaves out.
	landingMargin = 80
	// landingPause is between two steps of one container, and grows with the time
	// that its tasks lost to the last one.
	landingPause = 100 * time.Millisecond
	// landingHold is how long a container is left alone that could not be reclaimed.
	// It doubles each time, up to landingHoldMax.
	landingHold    = 30 * time.Second
	landingHoldMax = 10 * time.Minute
)

// landings carries out lowerings of memory.high below usage. It is for concurrent
// use.
type landings struct {
	ledger  *ledger.Ledger
	metrics *metrics.Metrics
	log     logr.Logger
	history *history
	// landed is told of the pod whose container is down.
	landed func(ctrl.Request)

	mu    sync.Mutex
	all   map[uint64]*landing // by inode number
	queue chan *landing
}

// landing is one cgroup on its way down.
type landing struct {
	tree    *cgroup.Tree
	cgroup  string
	inode   uint64
	request ctrl.Request

	// These are guarded by landings.mu.
	target memory.Value
	over   bool      // called off
	queued bool      // or on its way
	due    time.Time // of the next step; zero: at once
	hold   time.Duration
	top    memory.Value // what memory.high was before
}

func newLandings(l *ledger.Ledger, m *metrics.Metrics, log logr.Logger, landed func(ctrl.Request)) *landings {
	return &landings{ledger: l, metrics: m, log: log, landed: landed, all: map[uint64]*landing{}, queue: make(chan *landing, 1024)}
}

// run lands until the context ends. What is under way then stays where it is.
func (l *landings) run(ctx context.Context) {
	var workers sync.WaitGroup
	for range landingWorkers {
		workers.Go(func() {
			for {
				select {
				case <-ctx.Done():
					return
				case landing := <-l.queue:
					l.land(ctx, landing)
				}
			}
		})
	}
	workers.Wait()
}

// lower begins to land a cgroup, or gives a landing under way another target.
func (l *landings) lower(tree *cgroup.Tree, c *change, request ctrl.Request) {
	l.mu.Lock()
	defer l.mu.Unlock()
	one := l.all[c.dir.Inode]
	if one == nil {
		one = &landing{tree: tree, cgroup: c.Cgroup.Cgroup, inode: c.dir.Inode, request: request, top: c.from, hold: landingHold}
		l.all[one.inode] = one
	}
	one.target, one.over = c.to, false
	if !one.queued && !one.due.After(time.Now()) {
		select {
		case l.queue <- one:
			one.queued = true
		default: // many at once: a later full pass brings it again
		}
	}
	l.metrics.Landings(len(l.all))
}

// cancel calls off the landing of a cgroup: something else is wanted of it.
func (l *landings) cancel(inode uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if one := l.all[inode]; one != nil {
		one.over = true
		delete(l.all, inode)
		l.metrics.Landings(len(l.all))
	}
}

// aim returns the target of a landing, and false once it is called off.
func (l *landings) aim(one *landing) (memory.Value, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return one.target, !one.over
}

// land takes one cgroup down, step by step.
func (l *landings) land(ctx context.Context, one *landing) {
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		one.queued = false
	}()
	for {
		target, on := l.aim(one)
		if !on {
			return
		}
		pause, more := l.step(one, target)
		if !more {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// step makes one step. pause is how long to wait before the next, more is false if
// there is none for now.
func (l *landings) step(one *landing, target memory.Value) (pause time.Duration, more bool) {
	dir, err := one.tree.Open(one.cgroup)
	if err == nil {
		defer dir.Close()
	}
	if err != nil || dir.Inode != one.inode {
		l.cancel(one.inode)
		return 0, false
	}
	usage, err := dir.Usage()
	high, errHigh := dir.Value(memory.High)
	if err != nil || errHigh != nil {
		l.cancel(one.inode)
		return 0, false
	}
	next := nextStep(usage, high, target, int64(os.Getpagesize()))
	if next < high {
		before, _ := dir.Pressure() // nil: not known, and then the pause does not grow
		if err := l.write(dir, high, next); err != nil {
			l.log.Error(err, "a landing is given up")
			l.cancel(one.inode)
			return 0, false
		}
		pause = landingPause
		if after, err := dir.Pressure(); err == nil && before != nil && after != nil {
			pause = max(pause, 4*(after.Full-before.Full))
		}
	}
	usage, err = dir.Usage()
	if err == nil && usage > next+next/landingMargin {
		// Nothing could be reclaimed: held at memory.high, the container would stand
		// still. It gets back what it had, until its usage has fallen by itself or a
		// later try finds something.
		if err := l.write(dir, next, one.top); err != nil && !cgroup.IsGone(err) {
			l.log.Error(err, "memory.high was not raised again")
		}
		l.metrics.Landed(metrics.Deferred)
		l.mu.Lock()
		one.due = time.Now().Add(one.hold)
		one.hold = min(2*one.hold, landingHoldMax)
		l.mu.Unlock()
		return 0, false
	}
	if next == target {
		l.cancel(one.inode)
		l.metrics.Landed(metrics.Written)
		l.history.wrote(dir, memory.High, one.top, target)
		l.landed(one.request)
		return 0, false
	}
	return pause, err == nil
}

// nextStep returns what memory.high should hold next on the way from high down to
// target: at once what reclaims nothing, then by a share of what is in use.
func nextStep(usage, high, target memory.Value, pageSize int64) memory.Value {
	next := memory.Bytes(int64(usage-usage/landingShare), pageSize)
	return min(max(next, target), high)
}

// write writes memory.high, with a record.
func (l *landings) write(dir *cgroup.Dir, from, to memory.Value) error {
	if err := l.ledger.Before(ledger.Key{Inode: dir.Inode, File: memory.High}, dir.Cgroup, from, to); err != nil {
		return err
	}
	return dir.Write(memory.High, to)
}
