package controllers

import (
	"errors"
	"path"

	"github.com/memqos/memqos/cgroup"
	"github.com/memqos/memqos/ledger"
	"github.com/memqos/memqos/memory"
	"github.com/memqos/memqos/metrics"
	"github.com/memqos/memqos/qos"
)

// keep writes again the memory.min and memory.low that an earlier run of memqos wrote
// and somebody has reset since: all that an agent can do that started while the API
// server is away. The kubelet's tick resets the classes every minute then as well.
//
// What holds anything but 0 stays: it may be somebody's. So does memory.high: the
// stall guard is not there yet to look after it.
func keep(tree *cgroup.Tree, l *ledger.Ledger, m *metrics.Metrics) error {
	var errs []error
	entries := l.All()
	for _, key := range topDown(entries) {
		e := entries[key]
		if (key.File == memory.Min || key.File == memory.Low) && e.Wrote != 0 {
			errs = append(errs, keepOne(tree, key, e, m))
		}
	}
	return errors.Join(errs...)
}

func keepOne(tree *cgroup.Tree, key ledger.Key, e ledger.Entry, m *metrics.Metrics) error {
	dir, now, err := open(tree, key, e)
	if dir == nil {
		return err
	}
	defer dir.Close()
	if now != 0 {
		return nil
	}
	level, result := string(levelOf(tree.Layout, e.Cgroup)), metrics.Written
	switch err = dir.Write(key.File, e.Wrote); {
	case cgroup.IsGone(err):
		result, err = metrics.Gone, nil
	case err != nil:
		result = metrics.Failed
	default:
		m.Repair(level, key.File, metrics.Reset)
	}
	m.Write(level, key.File, result)
	return err
}

// levelOf is the level of a cgroup that memqos writes.
func levelOf(l cgroup.Layout, dir string) qos.Level {
	switch {
	case dir == l.Root:
		return qos.LevelNode
	case l.IsAbovePods(dir):
		return qos.LevelQOS
	case l.IsAbovePods(path.Dir(dir)):
		return qos.LevelPod
	}
	return qos.LevelContainer
}
