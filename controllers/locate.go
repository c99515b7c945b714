package controllers

import (
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/memqos/memqos/cgroup"
	"github.com/memqos/memqos/memory"
	"github.com/memqos/memqos/qos"
)

// located is the plan of a pod laid over the cgroups that are there.
type located struct {
	// dir is where the pod's cgroup is, or will be.
	dir string
	// cgroups is the pod's plan, top-down. Cgroup is empty where there is none: a
	// container that has not started, or has ended.
	cgroups []qos.Cgroup
	// sandboxes are cgroups of pause containers.
	sandboxes []string
	// unknown are cgroups beneath the pod's of which neither the pod's status nor an
	// OCI bundle says whose they are. Neither these nor sandboxes are ever written to.
	unknown []string
}

// locate finds the cgroups of a pod and its containers. A pod without a cgroup,
// or one that is not shown to be the pod's, comes back with none located.
func (s *site) locate(pod *corev1.Pod) (located, error) {
	planned := append([]qos.Cgroup{s.policy.Pod(pod)}, s.policy.Containers(pod)...)
	l := located{cgroups: planned}
	uid, mirror := cgroup.PodUID(pod)
	var err error
	if l.dir, err = s.tree.Layout.Pod(qos.Class(pod), uid); err != nil {
		return l, err
	}
	children, err := s.tree.Children(l.dir)
	if cgroup.IsGone(err) {
		return l, nil
	}
	if err != nil {
		return l, err
	}
	found := s.identify(&l, pod, uid, children)
	// A mirror pod says by annotation which cgroup is its own. It is believed once
	// something in there is shown to be the pod's.
	if mirror && len(found) == 0 && len(l.sandboxes) == 0 {
		return located{dir: l.dir, cgroups: planned}, nil
	}
	l.cgroups = append(make([]qos.Cgroup, 0, len(planned)+len(children)), planned[0])
	l.cgroups[0].Cgroup = l.dir
	for _, c := range planned[1:] {
		if found[c.Container] == nil {
			l.cgroups = append(l.cgroups, c)
		}
		// More than one while a container's next run begins and the last one ends.
		for _, c.Cgroup = range found[c.Container] {
			l.cgroups = append(l.cgroups, s.unlessOwn(c))
			// The same is wanted of the cgroup that crun makes within the scope: it puts
			// the container's processes there and its resources on both.
			child := c
			child.Cgroup = path.Join(c.Cgroup, cgroup.CrunChild)
			if s.tree.Exists(child.Cgroup) {
				l.cgroups = append(l.cgroups, s.unlessOwn(child))
			}
		}
	}
	return l, nil
}

// unlessOwn wants nothing of the agent's own container.
func (s *site) unlessOwn(c qos.Cgroup) qos.Cgroup {
	if c.Cgroup != s.own {
		return c
	}
	reason := make(map[memory.File]string, len(memory.Files))
	for _, file := range memory.Files {
		reason[file] = "left alone: the kernel lets no agent write the files of its own container"
	}
	c.Values, c.Reason = memory.Values{}, reason
	return c
}

// identify tells whose the cgroups beneath a pod's are: first by the pod's status,
// then by their bundles. It returns those of the pod's containers by name, and
// adds the others to l.
func (s *site) identify(l *located, pod *corev1.Pod, uid string, children []string) (found map[string][]string) {
	container := map[string]string{} // by id
	for name, containerID := range cgroup.ContainerIDs(pod) {
		if _, id, ok := strings.Cut(containerID, "://"); ok {
			container[id] = name
		}
	}
	found = map[string][]string{}
	for _, child := range children {
		dir := path.Join(l.dir, child)
		id, ok := cgroup.ContainerID(s.tree.Layout.Driver, child)
		if !ok {
			l.unknown = append(l.unknown, dir)
			continue
		}
		name, named := container[id]
		if !named {
			who, ok := s.identities.of(s.tree, dir)
			switch {
			case !ok || who.PodUID != uid || who.Namespace != pod.Namespace || who.Pod != pod.Name:
				l.unknown = append(l.unknown, dir)
				continue
			case who.Sandbox:
				l.sandboxes = append(l.sandboxes, dir)
				continue
			}
			name = who.Container
		}
		if slices.ContainsFunc(l.cgroups[1:], func(c qos.Cgroup) bool { return c.Container == name }) {
			found[name] = append(found[name], dir)
		} else {
			l.unknown = append(l.unknown, dir) // not in the spec that the API server has shown so far
		}
	}
	return found
}

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
