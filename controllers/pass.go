package controllers

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"path"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/priorityqueue"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/memqos/memqos/cgroup"
	"github.com/memqos/memqos/memory"
	"github.com/memqos/memqos/metrics"
)

// pass enqueues everything there is, and knows when all of it was reconciled.
// Events may be lost (a watch that lagged, an overwrite that nobody saw); what
// they would have said is found by the next pass.
type pass struct {
	metrics *metrics.Metrics

	mu        sync.Mutex
	queues    map[string]workqueue.TypedRateLimitingInterface[ctrl.Request] // by controller
	pending   map[ctrl.Request]bool
	began     time.Time
	found     findings
	completed bool      // once
	ended     time.Time // of the last one
	asked     chan struct{}
}

func newPass(m *metrics.Metrics) *pass {
	return &pass{metrics: m, asked: make(chan struct{}, 1)}
}

// ask asks for a full pass now.
func (p *pass) ask() {
	select {
	case p.asked <- struct{}{}:
	default: // somebody has already
	}
}

// enqueue adds an item to a controller's queue, if that has started.
func (p *pass) enqueue(controller string, req ctrl.Request) {
	p.mu.Lock()
	q := p.queues[controller]
	p.mu.Unlock()
	if q != nil {
		q.Add(req)
	}
}

// source is the Source through which a controller takes part in passes.
func (p *pass) source(controller string) source.Source {
	return source.Func(func(_ context.Context, q workqueue.TypedRateLimitingInterface[ctrl.Request]) error {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.queues == nil {
			p.queues = map[string]workqueue.TypedRateLimitingInterface[ctrl.Request]{}
		}
		p.queues[controller] = q
		return nil
	})
}

// begin starts a pass over the pods and the node. One that is not over yet goes
// on, and takes in what has come since.
func (p *pass) begin(ctx context.Context, pods client.Reader, node ctrl.Request) error {
	var list corev1.PodList
	if err := pods.List(ctx, &list); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.pending) == 0 {
		p.pending, p.found, p.began = map[ctrl.Request]bool{}, findings{}, time.Now()
	}
	p.pending[node] = true
	addLater(p.queues[nodeController], node)
	for i := range list.Items {
		req := ctrl.Request{NamespacedName: client.ObjectKeyFromObject(&list.Items[i])}
		p.pending[req] = true
		addLater(p.queues[podController], req)
	}
	return nil
}

// addLater adds an item behind those that an event has added.
func addLater(q workqueue.TypedRateLimitingInterface[ctrl.Request], req ctrl.Request) {
	if pq, ok := q.(priorityqueue.PriorityQueue[ctrl.Request]); ok {
		pq.AddWithOpts(priorityqueue.AddOpts{Priority: new(handler.LowPriority)}, req)
		return
	}
	q.Add(req)
}

// findings are what the reconcile of an item, or a pass, has seen.
type findings struct {
	compared  map[string]int                     // cgroups, by level
	drifted   map[string]map[memory.File]int     // files that do not hold what is wanted, by level
	protected map[string]map[memory.File]float64 // bytes of wanted protection, by level
	railed    map[string]int                     // cgroups that a rail bounds, by rail
}

func find(cgroups []seen, o outcome) findings {
	f := findings{compared: map[string]int{}, railed: map[string]int{}}
	for i := range cgroups {
		level := string(cgroups[i].Level)
		f.compared[level]++
		for _, file := range []memory.File{memory.Min, memory.Low} {
			// What crun makes within a container's cgroup has the same values once more.
			if v, ok := cgroups[i].Values[file]; ok && v != memory.Unlimited && path.Base(cgroups[i].Cgroup.Cgroup) != cgroup.CrunChild {
				count(&f.protected, level, file, float64(v))
			}
		}
		for _, rail := range cgroups[i].Rails {
			f.railed[string(rail)]++
		}
	}
	for _, c := range o.left {
		count(&f.drifted, string(c.Level), c.file, 1)
	}
	return f
}

// count adds to a sum by level and file.
func count[N int | float64](sums *map[string]map[memory.File]N, level string, file memory.File, n N) {
	if *sums == nil {
		*sums = map[string]map[memory.File]N{}
	}
	if (*sums)[level] == nil {
		(*sums)[level] = map[memory.File]N{}
	}
	(*sums)[level][file] += n
}

func (f *findings) add(other findings) {
	if f.compared == nil {
		f.compared, f.railed = map[string]int{}, map[string]int{}
	}
	for rail, n := range other.railed {
		f.railed[rail] += n
	}
	for level, n := range other.compared {
		f.compared[level] += n
	}
	for level, files := range other.drifted {
		for file, n := range files {
			count(&f.drifted, level, file, n)
		}
	}
	for level, files := range other.protected {
		for file, n := range files {
			count(&f.protected, level, file, n)
		}
	}
}

// done tells that an item was reconciled, and what was found.
func (p *pass) done(req ctrl.Request, found findings) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.pending[req] {
		return
	}
	delete(p.pending, req)
	p.found.add(found)
	if len(p.pending) > 0 {
		return
	}
	if !p.completed {
		p.completed = true
		// The first list of pods, whole and encoded, is the most that is ever held at
		// once: the runtime would keep its memory for minutes.
		go debug.FreeOSMemory()
	}
	now := time.Now()
	p.ended = now
	p.metrics.FullPass(float64(now.UnixNano())/1e9, now.Sub(p.began).Seconds(), metrics.Found{Cgroups: p.found.compared, Drifted: p.found.drifted, Protected: p.found.protected, Railed: p.found.railed})
}

// ready is the readiness check: the first pass is over.
func (p *pass) ready(*http.Request) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.completed {
		return errors.New("the first full pass is not over")
	}
	return nil
}

// controllers lists the controllers that take part.
func (p *pass) controllers() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Sorted(maps.Keys(p.queues))
}

// lastEnd is when the last pass ended; zero before the first has.
func (p *pass) lastEnd() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ended
}
