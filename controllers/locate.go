package controllers

import (
	"path"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/memqos/memqos/cgroup"
	"github.com/memqos/memqos/memory"
	"github.com/memqos/memqos/qos"
)

// located is the plan of a pod laid over the cgroups that are there.
type located struct {
	// cgroups is the pod's plan, top-down. Cgroup is empty where there is none: a
	// container that has not started, or has ended.
	cgroups []qos.Cgroup
	// unknown are cgroups beneath the pod's that no container of its status is in:
	// the sandbox, and containers that the status does not name yet. They are
	// never written to.
	unknown []string
}

// locate finds the cgroups of a pod and its containers. A pod without a cgroup,
// or one that is not shown to be the pod's, comes back with none located.
func (s *site) locate(pod *corev1.Pod) (located, error) {
	l := located{cgroups: append([]qos.Cgroup{s.policy.Pod(pod)}, s.policy.Containers(pod)...)}
	uid, mirror := cgroup.PodUID(pod)
	dir, err := s.tree.Layout.Pod(qos.Class(pod), uid)
	if err != nil {
		return l, err
	}
	children, err := s.tree.Children(dir)
	if cgroup.IsGone(err) {
		return l, nil
	}
	if err != nil {
		return l, err
	}

	container := map[string]string{} // by id
	for name, containerID := range cgroup.ContainerIDs(pod) {
		if _, id, ok := strings.Cut(containerID, "://"); ok {
			container[id] = name
		}
	}
	byContainer := map[string]string{} // cgroup, by name
	for _, child := range children {
		id, ok := cgroup.ContainerID(s.tree.Layout.Driver, child)
		if name, known := container[id]; ok && known {
			byContainer[name] = path.Join(dir, child)
		} else {
			l.unknown = append(l.unknown, path.Join(dir, child))
		}
	}
	// A mirror pod says by annotation which cgroup is its own. It is believed once
	// a container that the kubelet reported is found in there.
	if mirror && len(byContainer) == 0 {
		return located{cgroups: l.cgroups}, nil
	}
	l.cgroups[0].Cgroup = dir
	planned := l.cgroups
	l.cgroups = planned[:1:1]
	for _, c := range planned[1:] {
		c.Cgroup = byContainer[c.Container]
		l.cgroups = append(l.cgroups, c)
		if c.Cgroup == "" {
			continue
		}
		// The same is wanted of the cgroup that crun makes within the scope: it puts
		// the container's processes there and its resources on both.
		c.Cgroup = path.Join(c.Cgroup, crunChild)
		if _, err := s.tree.Value(c.Cgroup, memory.Min); err == nil {
			l.cgroups = append(l.cgroups, c)
		} else if !cgroup.IsGone(err) {
			return l, err
		}
	}
	return l, nil
}

// crunChild is the name of the cgroup that crun, under the systemd driver, makes
// within a container's scope.
const crunChild = "container"

// locateNode is the plan of kubepods and the QoS classes, with their cgroups.
func (s *site) locateNode(pods []corev1.Pod) []qos.Cgroup {
	wanted := s.policy.Node(pods)
	for i := range wanted {
		if c := &wanted[i]; c.Level == qos.LevelNode {
			c.Cgroup = s.tree.Layout.Root
		} else {
			c.Cgroup = s.tree.Layout.QOS(c.QOSClass)
		}
	}
	return wanted
}
