package testnode

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const (
	runLock  = "lock" // held for as long as the node lives
	keepMark = "keep" // a directory that is to stay
)

// makeRunDir makes the directory of one run, and removes those of runs that
// were killed: nobody holds their lock.
func makeRunDir(ctx context.Context, c cache) (dir string, unlock func(), err error) {
	release, err := lock(ctx, filepath.Join(c.root, "runs.lock"))
	if err != nil {
		return "", nil, err
	}
	defer release()
	const pattern = "memqos-node-*"
	old, err := filepath.Glob(filepath.Join(os.TempDir(), pattern))
	if err != nil {
		return "", nil, err
	}
	for _, dir := range old {
		if abandoned(dir) {
			if err := removeTree(dir); err != nil {
				return "", nil, fmt.Errorf("remove what a killed run has left: %w", err)
			}
		}
	}
	dir, err = os.MkdirTemp("", pattern)
	if err != nil {
		return "", nil, fmt.Errorf("make a directory for the run: %w", err)
	}
	unlock, err = lock(ctx, filepath.Join(dir, runLock))
	return dir, unlock, err
}

func abandoned(dir string) bool {
	if exists(filepath.Join(dir, keepMark)) {
		return false
	}
	f, err := os.Open(filepath.Join(dir, runLock))
	if err != nil {
		return false
	}
	defer f.Close() //nolint:errcheck // closing releases the lock
	return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil
}
