package config

import (
	"context"
	"crypto/sha256"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
)

const (
	// watchPeriod is the time between two looks at the file. The kubelet itself
	// takes up to a minute to bring a changed ConfigMap to its mount.
	watchPeriod = 2 * time.Second

	// patience is how many looks in a row may fail to read the file before that is
	// reported: a file that is being replaced may be away for a moment.
	patience = 3
)

// Source is a configuration file that may change under a running agent.
//
// It is read and compared by content. A ConfigMap's mount changes by a rename of
// the link ..data two directories away, an editor replaces the file, a shell
// truncates it: inotify sees each of them elsewhere and another file system none,
// and a read of a few hundred bytes every other second costs nothing.
type Source struct {
	path     string
	overlays []Overlay

	current *MemoryQoSConfiguration
	judged  [sha256.Size]byte // the content that the last Update was about
	refused bool              // the last Update was an error
	misses  int               // failed reads in a row
}

// Update is what a look at the file brought: a configuration to run with from
// now on, or why the file is refused and the one before stays.
type Update struct {
	Config *MemoryQoSConfiguration // not to be changed
	Err    error
}

// Open loads the configuration, as Load does, and returns the source of its
// changes. Without a path there are none.
func Open(path string, overlays ...Overlay) (*Source, *MemoryQoSConfiguration, error) {
	s := &Source{path: path, overlays: overlays}
	if path == "" {
		c, err := Load("", overlays...)
		s.current = c
		return s, c, err
	}
	data, err := readFile(path)
	if err != nil {
		return nil, nil, err
	}
	s.judged = sha256.Sum256(data)
	if s.current, err = s.decode(data); err != nil {
		return nil, nil, err
	}
	return s, s.current, nil
}

// Watch looks at the file until the context ends, and calls deliver with each
// Update. There is one
//   - with Config, when the file says something else than before, or says the
//     same again after it was refused;
//   - with Err, when it becomes one that is not valid, or that a running agent
//     cannot change to (ValidateUpdate), or cannot be read for some seconds.
//
// What remains as it is brings no second one.
func (s *Source) Watch(ctx context.Context, deliver func(Update)) {
	if s.path == "" {
		<-ctx.Done()
		return
	}
	tick := time.NewTicker(watchPeriod)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if u, ok := s.look(); ok {
				deliver(u)
			}
		}
	}
}

// look reads the file once and reports whether there is something to tell.
func (s *Source) look() (Update, bool) {
	data, err := readFile(s.path)
	if err != nil {
		s.misses++
		if s.misses != patience {
			return Update{}, false
		}
		s.judged, s.refused = [sha256.Size]byte{}, true
		return Update{Err: err}, true
	}
	s.misses = 0
	sum := sha256.Sum256(data)
	if sum == s.judged {
		return Update{}, false
	}
	s.judged = sum
	wasRefused := s.refused
	c, err := s.decode(data)
	if err == nil {
		if errs := ValidateUpdate(s.current, c); len(errs) > 0 {
			err = fmt.Errorf("configuration %s: %w", s.path, errs.ToAggregate())
		}
	}
	if s.refused = err != nil; s.refused {
		return Update{Err: err}, true
	}
	if equality.Semantic.DeepEqual(s.current, c) {
		return Update{Config: s.current}, wasRefused
	}
	s.current = c
	return Update{Config: c}, true
}

func (s *Source) decode(data []byte) (*MemoryQoSConfiguration, error) {
	c, err := Decode(data, s.overlays...)
	if err != nil {
		return nil, fmt.Errorf("configuration %s: %w", s.path, err)
	}
	return c, nil
}
