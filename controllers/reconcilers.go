package controllers

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/memqos/memqos/metrics"
	"github.com/memqos/memqos/qos"
)

// podReconciler brings the cgroups of one pod to what the plan wants.
type podReconciler struct {
	pods     client.Reader
	surveyor *surveyor
	pass     *pass
	metrics  *metrics.Metrics
}

func (r *podReconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	compared := 0
	containers := 0
	defer func() { r.pass.done(req, map[qos.Level]int{qos.LevelPod: compared, qos.LevelContainer: containers}) }()

	var pod corev1.Pod
	if err := r.pods.Get(ctx, req.NamespacedName, &pod); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	site := r.surveyor.site.Load()
	if site == nil || !qos.Active(&pod) {
		return ctrl.Result{}, nil
	}
	l, err := site.locate(&pod)
	if err != nil {
		r.metrics.Skipped("Unlocatable")
		return ctrl.Result{}, fmt.Errorf("find the cgroups of pod %s: %w", req, err)
	}
	for i := range l.cgroups {
		switch c := &l.cgroups[i]; {
		case c.Cgroup == "":
		case c.Level == qos.LevelPod:
			compared++
		default:
			containers++
		}
	}
	again, err := apply(ctx, ctrl.LoggerFrom(ctx), r.metrics, site.tree, l.cgroups)
	return ctrl.Result{RequeueAfter: again}, err
}

// nodeReconciler brings kubepods and the QoS classes to what the plan wants.
type nodeReconciler struct {
	pods     client.Reader
	surveyor *surveyor
	pass     *pass
	metrics  *metrics.Metrics
}

func (r *nodeReconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	compared := map[qos.Level]int{}
	defer func() { r.pass.done(req, compared) }()

	site := r.surveyor.site.Load()
	if site == nil {
		return ctrl.Result{}, nil
	}
	var pods corev1.PodList
	if err := r.pods.List(ctx, &pods); err != nil {
		return ctrl.Result{}, fmt.Errorf("list the node's pods: %w", err)
	}
	wanted := site.locateNode(pods.Items)
	for i := range wanted {
		compared[wanted[i].Level]++
	}
	again, err := apply(ctx, ctrl.LoggerFrom(ctx), r.metrics, site.tree, wanted)
	return ctrl.Result{RequeueAfter: again}, err
}
