package controllers

import (
	"context"
	"errors"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/memqos/memqos/memory"
	"github.com/memqos/memqos/metrics"
	"github.com/memqos/memqos/qos"
)

// podReconciler brings the cgroups of one pod to what the plan wants.
type podReconciler struct {
	pods     client.Reader
	surveyor *surveyor
	pass     *pass
	metrics  *metrics.Metrics
	writer   *writer
	announce *announcer
	index    *podIndex
	kills    *kills
}

func (r *podReconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	var found findings
	defer func() { r.pass.done(req, found) }()

	var pod corev1.Pod
	if err := r.pods.Get(ctx, req.NamespacedName, &pod); apierrors.IsNotFound(err) {
		r.announce.forget(req.NamespacedName)
		r.index.set(req, "")
		return ctrl.Result{}, nil
	} else if err != nil {
		return ctrl.Result{}, err
	}
	site := r.surveyor.site.Load()
	if site == nil || !qos.Active(&pod) {
		return ctrl.Result{}, nil
	}
	r.faults(site, &pod)
	cgroups, unread, err := r.observe(site, &pod)
	defer closeAll(cgroups)
	if err != nil {
		r.metrics.Skipped("Unlocatable")
		return ctrl.Result{}, fmt.Errorf("find the cgroups of pod %s: %w", req, err)
	}
	r.kills.follow(site.tree, req, cgroups)
	policy, _ := site.policy.For(&pod)
	// What memqos does not write it cannot raise.
	writes := !r.writer.dryRun() && !r.writer.kubelet.manages(memory.High)
	r.writer.guard.overlay(&pod, cgroups, policy.StallGuard.Value && writes)
	o, err := r.writer.apply(ctx, ctrl.LoggerFrom(ctx), site.tree, req, cgroups)
	found = find(cgroups, o)
	r.writer.history.saw(cgroups, o, r.writer.guard.relaxed)
	r.tell(&pod, cgroups, o)
	return ctrl.Result{RequeueAfter: o.again}, errors.Join(unread, err)
}

// faults says which annotations of a pod are passed over.
func (r *podReconciler) faults(site *site, pod *corev1.Pod) {
	_, errs := site.policy.For(pod)
	var notes []string
	for _, err := range errs {
		notes = append(notes, err.Error())
	}
	if r.announce.pod(pod, strings.Join(notes, "; "), len(errs) > 0, corev1.EventTypeWarning, "MemoryQoSAnnotationIgnored", "Configure", strings.Join(notes, "; ")) {
		r.metrics.AnnotationsIgnored(len(errs))
	}
}

// observe looks at the cgroups of a pod, and takes in what they show of the
// kubelet. The caller closes them. unread says which could not be read: the rest
// is there all the same.
func (r *podReconciler) observe(site *site, pod *corev1.Pod) (cgroups []seen, unread, err error) {
	l, err := site.locate(pod)
	r.index.set(ctrl.Request{NamespacedName: client.ObjectKeyFromObject(pod)}, l.dir)
	if err != nil {
		return nil, nil, err
	}
	cgroups, unread = look(site.tree, l.cgroups)
	r.writer.kubelet.observePod(site.policy, pod, cgroups, running(pod))
	return cgroups, unread, nil
}

// running reports whether every container of a pod runs: its cgroups have then
// had all that a kubelet gives them.
func running(pod *corev1.Pod) bool {
	for i := range pod.Status.ContainerStatuses {
		if pod.Status.ContainerStatuses[i].State.Running == nil {
			return false
		}
	}
	return len(pod.Status.ContainerStatuses) > 0
}

// tell emits the events of a pod that follow from what was applied.
func (r *podReconciler) tell(pod *corev1.Pod, cgroups []seen, o outcome) {
	pending := map[string]change{}
	for _, c := range o.pending {
		pending[c.Container] = c
	}
	contested := map[string][]string{}
	for _, c := range o.contested {
		contested[c.Container] = append(contested[c.Container], fmt.Sprintf("%s is %s, wanted %s", c.file, c.from, c.to))
	}
	for i := range cgroups {
		who := cgroups[i].Container
		c, waits := pending[who]
		note := ""
		if waits {
			note = fmt.Sprintf("%s: memory.max stays at %s: lowered to %s it would kill what is in use; it is tried again as usage falls", subject(who), c.from, c.to)
		}
		r.announce.pod(pod, who, waits, corev1.EventTypeWarning, "MemoryLimitPending", "Lower", note)
		files := contested[who]
		note = fmt.Sprintf("%s: somebody else keeps writing, memqos hardly answers any more: %s. See the annotation memqos.io/keep", subject(who), strings.Join(files, "; "))
		r.announce.pod(pod, who, len(files) > 0, corev1.EventTypeWarning, "MemoryQoSContested", "Repair", note)
	}
}

func subject(container string) string {
	if container == "" {
		return "pod"
	}
	return "container " + container
}

// nodeReconciler brings kubepods and the QoS classes to what the plan wants.
type nodeReconciler struct {
	pods     client.Reader
	surveyor *surveyor
	pass     *pass
	metrics  *metrics.Metrics
	writer   *writer
	announce *announcer
	kills    *kills
}

func (r *nodeReconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	var found findings
	defer func() { r.pass.done(req, found) }()

	site := r.surveyor.site.Load()
	if site == nil {
		return ctrl.Result{}, nil
	}
	cgroups, unread, err := r.observe(ctx, site)
	defer closeAll(cgroups)
	if err != nil {
		return ctrl.Result{}, err
	}
	r.kills.followNode(site.tree)
	o, err := r.writer.apply(ctx, ctrl.LoggerFrom(ctx), site.tree, req, cgroups)
	found = find(cgroups, o)
	r.writer.history.saw(cgroups, o, r.writer.guard.relaxed)
	r.metrics.ContestedFiles(r.writer.contests.contested())
	r.tell(cgroups, o)
	return ctrl.Result{RequeueAfter: o.again}, errors.Join(unread, err)
}

// tell emits an event for each cgroup above the pods that somebody else keeps writing.
func (r *nodeReconciler) tell(cgroups []seen, o outcome) {
	contested := map[string][]string{}
	for _, c := range o.contested {
		contested[c.Cgroup.Cgroup] = append(contested[c.Cgroup.Cgroup], fmt.Sprintf("%s is %s, wanted %s", c.file, c.from, c.to))
	}
	for i := range cgroups {
		files := contested[cgroups[i].Cgroup.Cgroup]
		note := fmt.Sprintf("%s: somebody else keeps writing, memqos hardly answers any more: %s", cgroups[i].Cgroup.Cgroup, strings.Join(files, "; "))
		r.announce.nodeState(cgroups[i].Cgroup.Cgroup, len(files) > 0, corev1.EventTypeWarning, "MemoryQoSContested", "Repair", note)
	}
}

// observe looks at kubepods and the classes, and takes in what they show of the
// kubelet. The caller closes them. unread says which could not be read.
func (r *nodeReconciler) observe(ctx context.Context, site *site) (cgroups []seen, unread, err error) {
	var pods corev1.PodList
	if err := r.pods.List(ctx, &pods); err != nil {
		return nil, nil, fmt.Errorf("list the node's pods: %w", err)
	}
	cgroups, unread = look(site.tree, site.locateNode(pods.Items))
	r.writer.kubelet.observeNode(site.policy, pods.Items, cgroups)
	return cgroups, unread, nil
}
