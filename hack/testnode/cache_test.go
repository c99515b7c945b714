package testnode

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
)

func TestArtefact(t *testing.T) {
	c := cache{t.TempDir(), newProgress(nil)}
	var builds atomic.Int32
	build := func(_ context.Context, dir string) error {
		builds.Add(1)
		return os.WriteFile(filepath.Join(dir, "result"), nil, 0o644)
	}
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			dir, err := c.artefact(t.Context(), "thing", []string{"a", "b"}, build)
			if err != nil || !exists(filepath.Join(dir, "result")) {
				t.Errorf("artefact in %s: %v", dir, err)
			}
		})
	}
	group.Wait()
	if builds.Load() != 1 {
		t.Errorf("built %d times", builds.Load())
	}
	// The same text cut elsewhere is another input.
	if _, err := c.artefact(t.Context(), "thing", []string{"ab"}, build); err != nil || builds.Load() != 2 {
		t.Errorf("other inputs: %d builds, %v", builds.Load(), err)
	}
}

func TestArtefactFails(t *testing.T) {
	c := cache{t.TempDir(), newProgress(nil)}
	cause := errors.New("cause")
	_, err := c.artefact(t.Context(), "thing", nil, func(context.Context, string) error { return cause })
	if !errors.Is(err, cause) {
		t.Errorf("got %v", err)
	}
	left, err := filepath.Glob(filepath.Join(c.root, "thing-*"))
	if err != nil || len(left) != 1 || filepath.Ext(left[0]) != ".lock" {
		t.Errorf("a failed build left %q, %v", left, err)
	}
}

func TestLockWaits(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	unlock, err := lock(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := lock(ctx, path); !errors.Is(err, context.Canceled) {
		t.Errorf("a lock that is held: %v", err)
	}
	unlock()
	unlock, err = lock(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	unlock()
}
