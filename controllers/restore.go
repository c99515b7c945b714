package controllers

import (
	"fmt"

	"github.com/memqos/memqos/cgroup"
	"github.com/memqos/memqos/ledger"
	"github.com/memqos/memqos/memory"
)

// LeftError says that memory.max was not put back: lowered so far, it would kill
// what is in use.
type LeftError struct {
	Cgroup       string
	Usage, Limit memory.Value
}

func (e *LeftError) Error() string {
	return fmt.Sprintf("memory.max of %s is left as it is: it was %s before memqos, and %s is in use; lowered, it would kill", e.Cgroup, e.Limit, e.Usage)
}

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
		err = put(dir, key.File, now, e.Original)
	}
	if cgroup.IsGone(err) {
		return nil
	}
	return err
}

// put writes a value, unless it would kill.
func put(dir *cgroup.Dir, file memory.File, from, to memory.Value) error {
	if file == memory.Max && to < from {
		usage, err := dir.Usage()
		if err != nil {
			return err
		}
		if !limitFits(usage, to) {
			return &LeftError{dir.Cgroup, usage, to}
		}
	}
	return dir.Write(file, to)
}
