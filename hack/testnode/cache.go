package testnode

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// cache holds what is built once: one directory an artefact, named after all
// that went into it, so that a directory that exists is complete and current.
type cache struct {
	root string
	log  *progress
}

func openCache(log *progress) (cache, error) {
	base, err := os.UserCacheDir()
	if err != nil {
		return cache{}, fmt.Errorf("find the cache directory: %w", err)
	}
	root := filepath.Join(base, "memqos")
	if err := os.MkdirAll(root, 0o755); err != nil {
		return cache{}, fmt.Errorf("make the cache directory: %w", err)
	}
	return cache{root: root, log: log}, nil
}

// artefact returns the directory name-HASH, where the hash covers inputs. If it
// does not exist, build fills a temporary directory that is then renamed.
// Processes that want the same artefact wait for each other and build it once.
func (c cache) artefact(ctx context.Context, name string, inputs []string, build func(ctx context.Context, dir string) error) (string, error) {
	dir := filepath.Join(c.root, name+"-"+digest(inputs))
	if exists(dir) {
		return dir, nil
	}
	defer c.log.stage("building %s", name)() // or another process does, and we wait
	unlock, err := lock(ctx, dir+".lock")
	if err != nil {
		return "", err
	}
	defer unlock()
	if exists(dir) {
		return dir, nil
	}
	partial := dir + ".partial" // ours alone while the lock is held; a killed build may have left one
	if err := removeTree(partial); err != nil {
		return "", fmt.Errorf("clear an unfinished build: %w", err)
	}
	if err := os.Mkdir(partial, 0o755); err != nil {
		return "", err
	}
	if err := build(ctx, partial); err != nil {
		return "", errors.Join(fmt.Errorf("build %s: %w", name, err), removeTree(partial))
	}
	if err := os.Rename(partial, dir); err != nil {
		return "", fmt.Errorf("put %s in place: %w", name, err)
	}
	return dir, nil
}

func digest(inputs []string) string {
	h := sha256.New()
	for _, input := range inputs {
		fmt.Fprintf(h, "%d\n%s\n", len(input), input) //nolint:errcheck // a hash does not fail
	}
	return hex.EncodeToString(h.Sum(nil))[:12]
}

// lock takes an flock on path, waiting for as long as ctx allows.
func lock(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil // closing releases
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("wait for another build that holds %s: %w", path, ctx.Err()), f.Close())
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// removeTree also removes what a Go module cache or a root file system makes
// read-only.
func removeTree(dir string) error {
	err := os.RemoveAll(dir)
	if err == nil || !errors.Is(err, fs.ErrPermission) {
		return err
	}
	walk := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() {
			err = os.Chmod(path, 0o700)
		}
		return err
	})
	return errors.Join(walk, os.RemoveAll(dir))
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func copyFile(dst, src string, mode fs.FileMode) error {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close() //nolint:errcheck // opened for reading
	out, err := os.OpenFile(dst, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
