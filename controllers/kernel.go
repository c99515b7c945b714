package controllers

import (
	"context"
	"path"
	"sync"
	"time"

	"github.com/go-logr/logr"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/memqos/memqos/cgroup"
	"github.com/memqos/memqos/memory"
	"github.com/memqos/memqos/metrics"
)

// pollPeriod is the time between two full passes while the kernel does not tell of
// every cgroup.
const pollPeriod = 5 * time.Second

// podIndex knows which pod a cgroup is of. It is for concurrent use.
type podIndex struct {
	mu   sync.Mutex
	pods map[string]ctrl.Request // by the pod's cgroup
	dirs map[ctrl.Request]string
}

func newPodIndex() *podIndex {
	return &podIndex{pods: map[string]ctrl.Request{}, dirs: map[ctrl.Request]string{}}
}

// set says that a pod's cgroup is, or will be, at dir; empty: that there is none.
func (x *podIndex) set(pod ctrl.Request, dir string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if old, ok := x.dirs[pod]; ok && old != dir && x.pods[old] == pod {
		delete(x.pods, old)
	}
	if dir == "" {
		delete(x.dirs, pod)
		return
	}
	x.dirs[pod], x.pods[dir] = dir, pod
}

// podOf returns the pod that a cgroup is of, or beneath.
func (x *podIndex) podOf(dir string) (ctrl.Request, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for ; dir != "." && dir != "/"; dir = path.Dir(dir) {
		if pod, ok := x.pods[dir]; ok {
			return pod, true
		}
	}
	return ctrl.Request{}, false
}

// kernel turns what the kernel tells of cgroups into requests. That nothing is
// lost is not its business: what it does not tell, the next full pass finds.
type kernel struct {
	pass    *pass
	index   *podIndex
	node    ctrl.Request
	metrics *metrics.Metrics
	log     logr.Logger
	// modified is told of a write to a managed file, and says whether that is settled;
	// counted of a change of memory.events, lost that there may have been any.
	modified func(tree *cgroup.Tree, cgroup string, file memory.File) (settled bool)
	counted  func(cgroup string)
	lost     func()

	tree    *cgroup.Tree // that is watched, or was tried to be
	watcher *cgroup.Watcher
	stop    context.CancelFunc
	ended   chan struct{}
	said    string
}

// follow watches a tree and no other. complete says that every cgroup of it is
// watched. It is not for concurrent use.
func (k *kernel) follow(ctx context.Context, tree *cgroup.Tree) (complete bool) {
	if k.tree != tree || (k.ended != nil && isClosed(k.ended)) {
		k.unfollow()
		k.start(ctx, tree)
	}
	watches, unwatched := 0, 0
	if k.watcher != nil {
		watches, unwatched = k.watcher.Watches(), k.watcher.Unwatched()
		if unwatched > 0 {
			k.watcher.Rewatch()
		}
	}
	k.metrics.Watches(watches, unwatched)
	complete = k.watcher != nil && unwatched == 0
	if k.watcher != nil {
		k.say(complete, "fs.inotify.max_user_watches is reached: some cgroups are polled instead of watched", "unwatched", unwatched)
	}
	return complete
}

func (k *kernel) start(ctx context.Context, tree *cgroup.Tree) {
	k.tree = tree
	w, err := tree.Watch()
	if err != nil {
		k.tree = nil // tried again at the next full pass
		k.say(false, "the kernel does not tell of cgroups: they are polled", "detail", err.Error())
		return
	}
	ctx, k.stop = context.WithCancel(ctx)
	k.watcher, k.ended = w, make(chan struct{})
	ended := k.ended
	go func() {
		defer close(ended)
		if err := w.Run(ctx, func(e cgroup.Event) { k.happened(tree, e) }); err != nil {
			k.log.Error(err, "watching has ended: it is begun anew")
		}
	}()
}

// say logs a change between watching and polling.
func (k *kernel) say(complete bool, polling string, details ...any) {
	state := "every cgroup is watched"
	if !complete {
		state = polling
	}
	if k.said != state {
		k.log.Info(state, details...)
	}
	k.said = state
}

func (k *kernel) unfollow() {
	if k.watcher != nil {
		k.stop()
		<-k.ended
	}
	k.tree, k.watcher, k.ended = nil, nil, nil
}

func isClosed(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// happened takes in an event. It must not wait: while it does, events may be lost.
func (k *kernel) happened(tree *cgroup.Tree, e cgroup.Event) {
	switch {
	case e.Kind == cgroup.Lost:
		k.metrics.EventsLost()
		k.pass.ask()
		if k.lost != nil {
			k.lost()
		}
		return
	case e.Kind == cgroup.Removed:
		return // nothing is wanted of it any more
	case e.File == cgroup.MemoryEvents:
		if k.counted != nil {
			k.counted(e.Cgroup)
		}
		return
	case e.Kind == cgroup.Modified && k.modified != nil && k.modified(tree, e.Cgroup, e.File):
		return
	}
	if pod, ok := k.index.podOf(e.Cgroup); ok {
		k.pass.enqueue(podController, pod)
	} else if tree.Layout.IsAbovePods(e.Cgroup) {
		k.pass.enqueue(nodeController, k.node)
	}
	// Else a pod's that the API server has not told of yet: its reconcile comes
	// with the news.
}
