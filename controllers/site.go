package controllers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/memqos/memqos/cgroup"
	"github.com/memqos/memqos/config"
	"github.com/memqos/memqos/memory"
	"github.com/memqos/memqos/metrics"
	"github.com/memqos/memqos/qos"
)

// site is what the reconcilers work on: the node's tree and the policy that
// follows from its size. Both change while the agent runs, when kubepods appears
// or the kubelet comes back with another driver or reservation.
type site struct {
	tree        *cgroup.Tree
	policy      qos.Policy
	identities  *identities
	allocatable int64 // in bytes
	// own is the cgroup of the agent's own container, "" if it is in none. The kernel
	// lets nobody write the root of their cgroup namespace (nsdelegate, EPERM).
	own string
}

func newSite(tree *cgroup.Tree, c *config.MemoryQoSConfiguration, allocatable int64, i *identities) *site {
	return &site{tree: tree, own: tree.Own(), allocatable: allocatable, policy: qos.NewPolicy(c, qos.Node{Allocatable: allocatable, Capacity: capacity(), PageSize: int64(os.Getpagesize())}), identities: i}
}

// capacity is the machine's memory in bytes, 0 if not known: what the kubelet, by
// way of /proc/meminfo, takes for the node's capacity.
func capacity() int64 {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0
	}
	return int64(info.Totalram) * int64(info.Unit)
}

// surveyor finds the site, and finds it again at every full pass.
type surveyor struct {
	nodeName string
	config   atomic.Pointer[config.MemoryQoSConfiguration]
	// discover returns the tree, or an UnsupportedError.
	discover func() (*cgroup.Tree, error)
	// nodes reads the Node from the API server.
	nodes      client.Reader
	identities *identities
	metrics    *metrics.Metrics
	log        logr.Logger

	site atomic.Pointer[site]
	idle atomic.Pointer[idleness] // nil while the node is served
	// What was last said, so that only a change is logged.
	saidReason, saidRoot, saidNote string
}

// survey looks at the node anew and reports whether it can be served. It is not
// for concurrent use.
func (s *surveyor) survey(ctx context.Context) bool {
	tree, err := s.discover()
	if err != nil {
		reason := cgroup.ReasonInaccessible
		var u *cgroup.UnsupportedError
		if errors.As(err, &u) {
			reason = u.Reason
		}
		s.unsupported(reason, err)
		return false
	}
	if old := s.site.Load(); old != nil && old.tree.Same(tree) {
		tree = old.tree // the fresh one is closed when it is collected
	}
	c := s.config.Load()
	allocatable, note := nodeAllocatable(ctx, tree, s.nodes, s.nodeName)
	if note != "" && note != s.saidNote {
		s.log.Info(note, "allocatableBytes", allocatable)
	}
	s.saidNote = note
	if s.saidRoot != tree.Layout.Root {
		s.log.Info("serving this node", "kubepods", tree.Layout.Root, "cgroupDriver", tree.Layout.Driver, "mount", tree.Mount, "allocatableBytes", allocatable,
			"emulationVersion", c.EmulationVersion, "memoryThrottlingFactor", *c.MemoryThrottlingFactor,
			"memoryReservationPolicy", c.MemoryReservationPolicy, "mode", c.Mode)
	}
	s.saidReason, s.saidRoot = "", tree.Layout.Root
	s.metrics.Supported(allocatable)
	s.idle.Store(nil)
	s.site.Store(newSite(tree, c, allocatable, s.identities))
	return true
}

// The further reasons for which a node is not served.
const (
	reasonAnotherAgent      = "AnotherAgent"      // a memqos that runs already has the state directory
	reasonStateInaccessible = "StateInaccessible" // the state directory cannot be written
)

// unsupported says once that the node is not served, and why.
func (s *surveyor) unsupported(reason string, err error) {
	if s.saidReason != reason {
		s.log.Info("idle: this node cannot be served yet; looking again from time to time", "reason", reason, "detail", err.Error())
	}
	s.saidReason, s.saidRoot = reason, ""
	s.metrics.Unsupported(reason)
	s.idle.Store(&idleness{reason, err.Error()})
	s.site.Store(nil)
}

// nodeAllocatable is node allocatable in bytes, as the kubelet's own MemoryQoS
// uses it. The kubelet writes it into kubepods' memory.max where
// enforceNodeAllocatable holds "pods", its default. Otherwise what the Node's
// status says, which is smaller by the hard eviction threshold, has to do, and
// note says so. 0 is unknown, and note says why.
func nodeAllocatable(ctx context.Context, tree *cgroup.Tree, nodes client.Reader, nodeName string) (bytes int64, note string) {
	limit, err := tree.Value(tree.Layout.Root, memory.Max)
	if err == nil && limit != memory.Unlimited {
		return int64(limit), ""
	}
	why := "kubepods has no memory.max (the kubelet's enforceNodeAllocatable lacks pods)"
	if err != nil {
		why = err.Error()
	}
	// The next full pass asks again; an API server that does not answer must not hold
	// up this one.
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	var node corev1.Node
	if err := nodes.Get(ctx, client.ObjectKey{Name: nodeName}, &node); err != nil {
		return 0, fmt.Sprintf("node allocatable is not known, memory.high of containers without a limit is left alone: %s; %v", why, err)
	}
	return node.Status.Allocatable.Memory().Value(),
		"node allocatable is that of the Node's status, smaller than the kubelet's own by evictionHard: " + why
}
