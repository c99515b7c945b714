package controllers

import (
	"errors"
	"sync"

	"github.com/go-logr/logr"

	"github.com/memqos/memqos/cgroup"
	"github.com/memqos/memqos/metrics"
)

// identities remembers what the OCI bundles said of containers' cgroups. An id is
// one container's for ever, so a path's answer is as well. It is for concurrent
// use.
type identities struct {
	bundles *cgroup.Bundles
	metrics *metrics.Metrics
	log     logr.Logger

	mu      sync.Mutex
	answers map[string]answer // by cgroup
	prunes  int               // at how many answers those of cgroups that are gone are dropped
}

type answer struct {
	identity cgroup.Identity
	refused  bool // the bundle lies
}

func newIdentities(paths []string, m *metrics.Metrics, log logr.Logger) (*identities, error) {
	b, err := cgroup.NewBundles(paths)
	if err != nil {
		return nil, err
	}
	return &identities{bundles: b, metrics: m, log: log, answers: map[string]answer{}}, nil
}

// of returns what is known of a container's cgroup. ok is false where there is no
// bundle, or one that is not believed.
func (i *identities) of(tree *cgroup.Tree, dir string) (_ cgroup.Identity, ok bool) {
	i.mu.Lock()
	a, known := i.answers[dir]
	i.mu.Unlock()
	if known {
		return a.identity, !a.refused
	}
	identity, err := i.bundles.Identify(tree.Layout, dir)
	var lie *cgroup.BundleError
	switch {
	case err == nil:
		a = answer{identity: identity}
	case errors.As(err, &lie):
		i.log.Info("a container is left alone until its pod's status names it: its OCI bundle is not believed", "cgroup", dir, "detail", err.Error())
		if i.metrics != nil {
			i.metrics.BundleRefused()
		}
		a = answer{refused: true}
	default: // not there, or not yet
		return cgroup.Identity{}, false
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.answers[dir] = a
	if len(i.answers) > i.prunes {
		for dir := range i.answers {
			if !tree.Exists(dir) {
				delete(i.answers, dir)
			}
		}
		i.prunes = 2*len(i.answers) + 64
	}
	return a.identity, !a.refused
}
