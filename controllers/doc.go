// Package controllers owns the reconciling: from the API server's pods and the
// node's cgroups to files that hold what the plan wants. It is level-triggered:
// each item starts from the full state, spec, tree and files, and writes only
// what differs.
//
// There is one item per pod (podReconciler: the pod's cgroup and its containers')
// and one for the node (nodeReconciler: kubepods and the QoS classes). Both find
// the node's tree and policy in site, and both end in apply, which writes, and
// leaves to landings what may take time: a memory.high below usage.
package controllers
