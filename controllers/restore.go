package controllers

import (
	"errors"
	"slices"

	"github.com/memqos/memqos/cgroup"
	"github.com/memqos/memqos/ledger"
	"github.com/memqos/memqos/memory"
	"github.com/memqos/memqos/metrics"
)

// revert puts back what a file held before memqos wrote it. What somebody else has
// written since stays, and a cgroup that is gone needs nothing.
func revert(tree *cgroup.Tree, key ledger.Key, e ledger.Entry) error {
	dir, err := tree.Open(e.Cgroup)
	if cgroup.IsGone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	if dir.Inode != key.Inode {
		return nil
	}
	now, err := dir.Value(key.File)
	if err == nil && now == e.Wrote && now != e.Original {
		if key.File == memory.Max && e.Original < now {
			usage, err := dir.Usage()
			if err != nil || !limitFits(usage, e.Original) {
				return &leftError{dir.Cgroup, usage, e.Original, err}
			}
		}
		err = dir.Write(key.File, e.Original)
	}
	if cgroup.IsGone(err) {
		return nil
	}
	return err
}
