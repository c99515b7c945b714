package controllers

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/memqos/memqos/cgroup"
	"github.com/memqos/memqos/ledger"
	"github.com/memqos/memqos/memory"
	"github.com/memqos/memqos/qos"
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

// Restoration is what came of putting everything back.
type Restoration struct {
	// Restored files hold again what they held before memqos wrote them.
	Restored int
	// Unchanged files needed nothing: their cgroup is gone, somebody else has
	// written them since, or they hold it already.
	Unchanged int
	// Left files could not be put back, each for the reason given. A later
	// Restore tries them again.
	Left []error
}

// Restore puts back what every file held before memqos wrote it, and forgets it.
// It may be cut off and called again.
func Restore(tree *cgroup.Tree, l *ledger.Ledger) (Restoration, error) {
	var r Restoration
	var cgroups []seen
	defer func() { closeAll(cgroups) }()
	var changes []change
	var done []ledger.Key
	entries := l.All()
	for _, key := range topDown(entries) {
		e := entries[key]
		dir, now, err := open(tree, key, e)
		switch {
		case err != nil:
			r.Left = append(r.Left, err)
		case dir == nil || now != e.Wrote || now == e.Original:
			r.Unchanged++
			done = append(done, key)
		default:
			changes = append(changes, change{&seen{Cgroup: &qos.Cgroup{Cgroup: e.Cgroup}, dir: dir}, key.File, now, e.Original})
		}
		if dir != nil {
			cgroups = append(cgroups, seen{dir: dir})
		}
	}
	for _, c := range ordered(changes) {
		err := put(c.dir, c.file, c.from, c.to)
		switch {
		case err == nil:
			r.Restored++
		case cgroup.IsGone(err):
			r.Unchanged++
		default:
			r.Left = append(r.Left, err)
			continue
		}
		done = append(done, c.key())
	}
	return r, l.Forget(done...)
}

// topDown returns the keys of entries, those of a parent before those of its
// children.
func topDown(entries map[ledger.Key]ledger.Entry) []ledger.Key {
	return slices.SortedFunc(maps.Keys(entries), func(a, b ledger.Key) int {
		return cmp.Or(strings.Compare(entries[a].Cgroup, entries[b].Cgroup), strings.Compare(string(a.File), string(b.File)))
	})
}

// open opens the cgroup of an entry and reads the file. dir is nil if the cgroup
// is gone.
func open(tree *cgroup.Tree, key ledger.Key, e ledger.Entry) (dir *cgroup.Dir, now memory.Value, err error) {
	dir, err = tree.Open(e.Cgroup)
	if err == nil && dir.Inode != key.Inode {
		dir.Close()
		return nil, 0, nil
	}
	if err == nil {
		now, err = dir.Value(key.File)
		if err != nil {
			dir.Close()
		}
	}
	if cgroup.IsGone(err) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, err
	}
	return dir, now, nil
}

// revert puts back what a file held before memqos wrote it. What somebody else has
// written since stays, and a cgroup that is gone needs nothing.
func revert(tree *cgroup.Tree, key ledger.Key, e ledger.Entry) error {
	dir, now, err := open(tree, key, e)
	if dir == nil {
		return err
	}
	defer dir.Close()
	if now == e.Wrote && now != e.Original {
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

// Uninstalled reports whether the agent ends because it is being removed from the
// cluster: its DaemonSet is gone or going. Uninstalling may take the agent's rights
// before it takes the agent; to have lost them means the same. If the API server
// cannot be asked, it is not known, and nothing is undone.
func Uninstalled(ctx context.Context, api *rest.Config, daemonSet client.ObjectKey) (bool, error) {
	scheme := runtime.NewScheme()
	if err := appsv1.AddToScheme(scheme); err != nil {
		return false, err
	}
	mapper := meta.NewDefaultRESTMapper(nil)
	mapper.Add(appsv1.SchemeGroupVersion.WithKind("DaemonSet"), meta.RESTScopeNamespace)
	c, err := client.New(api, client.Options{Scheme: scheme, Mapper: mapper})
	if err != nil {
		return false, err
	}
	var ds appsv1.DaemonSet
	err = c.Get(ctx, daemonSet, &ds)
	switch {
	case err == nil:
		return ds.DeletionTimestamp != nil, nil
	case apierrors.IsNotFound(err), apierrors.IsForbidden(err), apierrors.IsUnauthorized(err):
		return true, nil
	}
	return false, fmt.Errorf("ask for DaemonSet %s: %w", daemonSet, err)
}
