package testnode

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// Stage is one step of starting a node.
type Stage struct {
	Name     string
	Duration time.Duration
}

// reminder is how often a stage that takes long says that it goes on.
const reminder = 30 * time.Second

// progress prints one line a stage, with the time since the start.
type progress struct {
	mu     sync.Mutex
	w      io.Writer
	start  time.Time
	stages []Stage
}

func newProgress(w io.Writer) *progress {
	if w == nil {
		w = io.Discard
	}
	return &progress{w: w, start: time.Now()}
}

func (p *progress) printf(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	// Progress is a courtesy: a closed terminal must not fail a node.
	_, _ = fmt.Fprintf(p.w, "[%6.1fs] %s\n", time.Since(p.start).Seconds(), fmt.Sprintf(format, args...))
}

// stage prints the name and returns a function that records the duration.
func (p *progress) stage(format string, args ...any) (done func()) {
	name := fmt.Sprintf(format, args...)
	stop := p.ongoing(name)
	start := time.Now()
	return func() {
		stop()
		p.mu.Lock()
		defer p.mu.Unlock()
		p.stages = append(p.stages, Stage{name, time.Since(start)})
	}
}

// ongoing prints what begins, and prints again while it goes on.
func (p *progress) ongoing(what string) (stop func()) {
	p.printf("%s", what)
	start, ended := time.Now(), make(chan struct{})
	go func() {
		tick := time.NewTicker(reminder)
		defer tick.Stop()
		for {
			select {
			case <-ended:
				return
			case <-tick.C:
				p.printf("still %s, %.0fs", what, time.Since(start).Seconds())
			}
		}
	}()
	return sync.OnceFunc(func() { close(ended) })
}

func (p *progress) timings() []Stage {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]Stage(nil), p.stages...)
}
