package controllers

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/http"
	"path/filepath"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/memqos/memqos/cgroup"
	"github.com/memqos/memqos/config"
	"github.com/memqos/memqos/ledger"
	"github.com/memqos/memqos/memory"
	"github.com/memqos/memqos/metrics"
	"github.com/memqos/memqos/qos"
)

const (
	podController  = "pod"
	nodeController = "node"

	// podWorkers reconcile pods at the same time: one that is held up in a write
	// leaves the others.
	podWorkers = 4

	// idlePeriod is how often a node that cannot be served is looked at again.
	idlePeriod = 5 * time.Second

	// forever is for waits that must not end the agent: with the API server away,
	// the pods it knows are still served.
	forever = time.Duration(math.MaxInt64)
)

// Options are what the agent needs beside a connection to the API server.
type Options struct {
	// NodeName is the name of the Node that the agent runs on. Required.
	NodeName string
	// Config is a defaulted, valid configuration. Required.
	Config *config.MemoryQoSConfiguration
	// Source is where Config came from, and may change. Default: it does not.
	Source *config.Source
	// Discover finds the node's tree. Required.
	Discover func() (*cgroup.Tree, error)
	// Metrics are the agent's series. Required.
	Metrics *metrics.Metrics
	// Boot is the kernel's boot id. Required.
	Boot string
	// Version is the agent's own, for people.
	Version string
	// Log is where the agent logs. Required.
	Log logr.Logger
}

// New returns a manager that serves the node until its context ends.
func New(api *rest.Config, o Options) (manager.Manager, error) {
	scheme, err := newScheme()
	if err != nil {
		return nil, err
	}
	served := server.Options{BindAddress: o.Config.MetricsBindAddress}
	if o.Config.MetricsSecure {
		served.SecureServing, served.CertDir, served.FilterProvider = true, o.Config.MetricsCertDir, newAccess
		if served.CertDir == "" {
			served.CertDir = filepath.Join(o.Config.StateDir, "certificates") // there are none: one is made, and nobody else can put one there
		}
	}
	mgr, err := ctrl.NewManager(api, ctrl.Options{
		Scheme:                 scheme,
		MapperProvider:         staticMapper,
		Cache:                  podCache(o.NodeName),
		Logger:                 o.Log,
		Metrics:                served,
		PprofBindAddress:       o.Config.PprofBindAddress,
		HealthProbeBindAddress: o.Config.HealthzBindAddress,
	})
	if err != nil {
		return nil, err
	}
	if err := mgr.AddHealthzCheck("ping", healthz.Ping); err != nil {
		return nil, err
	}

	identities, err := newIdentities(o.Config.BundlePaths, o.Metrics, o.Log)
	if err != nil {
		return nil, err
	}
	enabled := o.Config.Enabled(config.MemoryQoS)
	o.Metrics.Feature(config.MemoryQoS, enabled)
	tellConfig(o.Metrics, o.Config)
	if !enabled {
		o.Log.Info("the feature gate is off: watching nothing, writing nothing", "featureGate", config.MemoryQoS)
		return mgr, mgr.AddReadyzCheck("feature-gate", healthz.Ping)
	}

	a := &agent{
		manager: mgr,
		options: o,
		node:    ctrl.Request{NamespacedName: client.ObjectKey{Name: o.NodeName}},
		pass:    newPass(o.Metrics),
		metrics: o.Metrics,
		history: newHistory(), started: time.Now(), asking: make(chan struct{}, askers),
		surveyor: &surveyor{
			nodeName: o.NodeName, discover: o.Discover, nodes: mgr.GetAPIReader(), identities: identities, metrics: o.Metrics, log: o.Log,
		},
	}
	a.surveyor.config.Store(o.Config)
	o.Metrics.Containers((&scrapes{read: a.containers}).containers)
	a.kernel = &kernel{pass: a.pass, index: newPodIndex(), node: a.node, metrics: o.Metrics, log: o.Log}
	if err := mgr.AddReadyzCheck("pass", a.ready); err != nil {
		return nil, err
	}
	return mgr, mgr.Add(a)
}

// agent is the Runnable that waits for a node that can be served, starts the
// controllers, and from then on makes full passes.
type agent struct {
	manager  manager.Manager
	options  Options
	node     ctrl.Request
	surveyor *surveyor
	pass     *pass
	metrics  *metrics.Metrics
	ledger   *ledger.Ledger
	kubelet  *kubeletFeature
	kernel   *kernel
	guard    *stallGuard
	kills    *kills
	history  *history
	idle     atomic.Bool
	tidied   time.Time

	// For those who ask.
	started  time.Time
	serving  atomic.Pointer[serving]
	refused  atomic.Pointer[string] // why a changed configuration is not in use
	watching atomic.Bool
	asking   chan struct{}
}

// ready is the readiness check. An idle agent is ready: there is nothing that it
// could do better, and an alert on memqos_node_unsupported tells of it.
func (a *agent) ready(req *http.Request) error {
	if a.idle.Load() {
		return nil
	}
	return a.pass.ready(req)
}

// Start implements manager.Runnable.
func (a *agent) Start(ctx context.Context) error {
	defer a.closeLedger()
	defer a.kernel.unfollow()
	if address := a.options.Config.StatusBindAddress; address != "0" {
		go a.serve(ctx, "tcp", address)
	}
	started := false
	for {
		if a.ledger == nil && a.openLedger() {
			go a.serveSocket(ctx)
		}
		served := a.ledger != nil && a.surveyor.survey(ctx)
		a.idle.Store(!served)
		wait := idlePeriod
		if served {
			if !started {
				if err := a.startControllers(ctx); err != nil {
					if ctx.Err() != nil {
						return nil
					}
					return err
				}
				started = true
			}
			a.tidy()
			// Before the pass lists what is there, so that between them nothing is missed.
			complete := a.kernel.follow(ctx, a.surveyor.site.Load().tree)
			a.watching.Store(complete)
			if err := a.pass.begin(ctx, a.manager.GetCache(), a.node); err != nil {
				a.surveyor.log.Error(err, "a full pass is left out")
			}
			if wait = a.surveyor.config.Load().ResyncPeriod.Duration; !complete {
				a.guard.poll()
				wait = min(wait, pollPeriod)
			}
		} else {
			a.kernel.unfollow()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-a.pass.asked:
		case <-time.After(wait):
		}
	}
}

// tidyPeriod is how long what was counted of cgroups may outlive them: to look for each
// is a seventh of what an idle agent does, if it is done before every full pass.
const tidyPeriod = 5 * time.Minute

// tidy is what comes before each full pass: files that the kubelet has taken over
// are given back, and the ledger forgets cgroups that are gone.
func (a *agent) tidy() {
	if path := a.surveyor.config.Load().KubeletConfigFile; path != "" {
		a.kubelet.readConfig(path)
	}
	tree := a.surveyor.site.Load().tree
	a.kubelet.prune(tree)
	if !a.dryRun() {
		if err := a.kubelet.giveBack(tree); err != nil {
			a.surveyor.log.Error(err, "not everything was given back to the kubelet")
		}
	}
	a.guard.tidy(tree)
	if now := time.Now(); now.Sub(a.tidied) >= tidyPeriod {
		a.tidied = now
		a.kills.tidy(tree)
		a.history.tidy(tree)
		go debug.FreeOSMemory() // what pods that came and went have left
	}
	if err := a.ledger.Prune(tree.Is); err != nil {
		a.surveyor.log.Error(err, "the state was not tidied")
	}
}

// openLedger opens the state if it is not open yet, and reports whether it is.
// While another agent has it, or the directory cannot be written, the node is not
// served: without a way back nothing is written.
func (a *agent) openLedger() bool {
	if a.ledger != nil {
		return true
	}
	l, err := ledger.Open(a.options.Config.StateDir, a.options.Boot)
	if err != nil {
		reason := reasonStateInaccessible
		if errors.Is(err, ledger.ErrInUse) {
			reason = reasonAnotherAgent
		}
		a.surveyor.unsupported(reason, err)
		return false
	}
	a.ledger = l
	return true
}

func (a *agent) closeLedger() {
	if a.ledger == nil {
		return
	}
	if err := a.ledger.Close(); err != nil {
		a.surveyor.log.Error(err, "the state was not closed")
	}
}

// startControllers adds the controllers to the running manager. Before that,
// nothing is watched: a node that is not served costs the API server nothing.
func (a *agent) startControllers(ctx context.Context) error {
	pods := a.manager.GetCache()
	if err := a.awaitPods(ctx, pods); err != nil {
		return fmt.Errorf("watch the node's pods: %w", err)
	}
	announce := newAnnouncer(a.manager.GetEventRecorder("memqos"), a.options.NodeName)
	a.kubelet = newKubeletFeature(a.ledger, a.metrics, announce, a.surveyor.log)
	if a.options.Source != nil {
		go a.options.Source.Watch(ctx, func(u config.Update) { a.reconfigure(announce, u) })
	}
	w := &writer{ledger: a.ledger, metrics: a.metrics, contests: newContests(), kubelet: a.kubelet, history: a.history, now: time.Now, dryRun: a.dryRun}
	w.landings = newLandings(a.ledger, a.metrics, a.surveyor.log, func(pod ctrl.Request) { a.pass.enqueue(podController, pod) })
	w.guard = newStallGuard(a.surveyor, a.pass, announce, a.metrics, a.surveyor.log, a.options.Boot)
	a.guard, a.kills = w.guard, newKills(pods, a.surveyor, announce, a.metrics, a.surveyor.log)
	w.landings.history, a.guard.history, a.kills.history = a.history, a.history, a.history
	a.serving.Store(&serving{a.guard, a.kubelet})
	a.kernel.counted = func(dir string) {
		a.history.counted(dir)
		a.guard.counted(dir)
		a.kills.counted(dir)
	}
	a.kernel.lost = a.kills.lost
	a.kernel.modified = func(tree *cgroup.Tree, at string, file memory.File) bool {
		return w.reflex(a.surveyor.log, tree, at, file)
	}
	go w.landings.run(ctx)
	go a.guard.run(ctx)
	go a.kills.run(ctx)
	podReconciler := &podReconciler{pods, a.surveyor, a.pass, a.metrics, w, announce, a.kernel.index, a.kills}
	nodeReconciler := &nodeReconciler{pods, a.surveyor, a.pass, a.metrics, w, announce, a.kills}
	if err := a.lookFirst(ctx, pods, podReconciler, nodeReconciler); err != nil {
		return err
	}
	podEvents := source.Kind(pods, &corev1.Pod{}, &handler.TypedEnqueueRequestForObject[*corev1.Pod]{})
	err := a.addController(podController, podWorkers, podEvents, podReconciler)
	if err != nil {
		return err
	}
	toNode := handler.TypedEnqueueRequestsFromMapFunc(func(context.Context, *corev1.Pod) []reconcile.Request { return []reconcile.Request{a.node} })
	nodeEvents := source.Kind(pods, &corev1.Pod{}, toNode, predicate.TypedFuncs[*corev1.Pod]{
		UpdateFunc: func(e event.TypedUpdateEvent[*corev1.Pod]) bool { return sumsMayDiffer(e.ObjectOld, e.ObjectNew) },
	})
	if err := a.addController(nodeController, 1, nodeEvents, nodeReconciler); err != nil {
		return err
	}
	for len(a.pass.controllers()) < 2 { // started by the manager, each in a goroutine
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(10 * time.Millisecond):
		}
	}
	return nil
}

// awaitPods returns once the node's pods are known, however long the API server is
// away. Meanwhile what an earlier run wrote is kept.
func (a *agent) awaitPods(ctx context.Context, pods cache.Cache) error {
	known := make(chan error, 1)
	go func() {
		_, err := pods.GetInformer(ctx, &corev1.Pod{})
		known <- err
	}()
	for said := ""; ; {
		select {
		case err := <-known:
			return err
		case <-time.After(pollPeriod):
		}
		if said == "" {
			a.surveyor.log.Info("the API server has not told of this node's pods yet: what an earlier run wrote is kept, new containers and changes wait")
			said = "waits"
		}
		if a.dryRun() {
			continue
		}
		if err := keep(a.surveyor.site.Load().tree, a.ledger, a.metrics); err != nil && err.Error() != said {
			a.surveyor.log.Error(err, "not all of it could be kept")
			said = err.Error()
		}
	}
}

// dryRun reports whether nothing is to be written.
func (a *agent) dryRun() bool { return a.surveyor.config.Load().Mode == config.DryRun }

// reconfigure takes in a change of the configuration file. One that is not valid
// changes nothing, and is told of.
func (a *agent) reconfigure(announce *announcer, u config.Update) {
	a.metrics.Reloaded(u.Err == nil, time.Now())
	if u.Err != nil {
		a.refused.Store(new(u.Err.Error()))
		a.surveyor.log.Error(u.Err, "the configuration is refused, the last one stays")
		announce.node(corev1.EventTypeWarning, "MemoryQoSConfigurationRefused", "Reload", "The last configuration stays: "+u.Err.Error())
		return
	}
	a.surveyor.log.Info("the configuration has changed", "emulationVersion", u.Config.EmulationVersion,
		"memoryThrottlingFactor", *u.Config.MemoryThrottlingFactor, "memoryReservationPolicy", u.Config.MemoryReservationPolicy, "mode", u.Config.Mode, "rules", len(u.Config.Rules))
	a.refused.Store(nil)
	a.surveyor.config.Store(u.Config)
	tellConfig(a.metrics, u.Config)
	a.pass.ask()
}

func tellConfig(m *metrics.Metrics, c *config.MemoryQoSConfiguration) {
	m.Config(string(c.EmulationVersion), string(c.Mode), string(c.MemoryReservationPolicy), *c.MemoryThrottlingFactor)
}

// lookFirst looks at every cgroup before the first is written: by what is there it
// is known whether the kubelet's own feature writes.
func (a *agent) lookFirst(ctx context.Context, pods client.Reader, p *podReconciler, n *nodeReconciler) error {
	site := a.surveyor.site.Load()
	var list corev1.PodList
	if err := pods.List(ctx, &list); err != nil {
		return fmt.Errorf("list the node's pods: %w", err)
	}
	for i := range list.Items {
		if !qos.Active(&list.Items[i]) {
			continue
		}
		cgroups, unread, err := p.observe(site, &list.Items[i])
		closeAll(cgroups)
		if err = errors.Join(unread, err); err != nil {
			a.surveyor.log.V(2).Info("not looked at", "pod", list.Items[i].Name, "error", err.Error()) // its reconcile will say why
		}
	}
	cgroups, _, err := n.observe(ctx, site)
	closeAll(cgroups)
	return err
}

func (a *agent) addController(name string, workers int, events source.Source, r reconcile.Reconciler) error {
	c, err := controller.New(name, a.manager, controller.Options{
		Reconciler:              r,
		MaxConcurrentReconciles: workers,
		CacheSyncTimeout:        forever,
		RateLimiter:             workqueue.NewTypedItemExponentialFailureRateLimiter[ctrl.Request](100*time.Millisecond, 30*time.Second),
		SkipNameValidation:      new(true), // names need to be unique only within one process's metrics; tests run several agents
	})
	if err != nil {
		return fmt.Errorf("make controller %s: %w", name, err)
	}
	if err := c.Watch(events); err != nil {
		return fmt.Errorf("watch pods for controller %s: %w", name, err)
	}
	return c.Watch(a.pass.source(name))
}

// sumsMayDiffer reports whether a pod's change can change a sum over pods. Most
// changes are of its status and cannot.
func sumsMayDiffer(before, after *corev1.Pod) bool {
	return qos.Active(before) != qos.Active(after) || qos.Class(before) != qos.Class(after) || !equality.Semantic.DeepEqual(before.Spec, after.Spec) ||
		!maps.Equal(before.Labels, after.Labels) || !maps.Equal(before.Annotations, after.Annotations) // rules and annotations
}
