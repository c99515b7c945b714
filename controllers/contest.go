package controllers

import (
	"sync"
	"time"

	"github.com/memqos/memqos/ledger"
)

// Somebody who writes the same file again and again is answered at once a few
// times (a new scope is written by systemd two or three times, the kubelet's tick
// comes once a minute), then ever more slowly, and at last hardly: two writers
// that fight for ever help no workload.
const (
	contestMemory  = time.Minute     // without a repair for so long, all is forgotten
	contestFree    = 10              // repairs within that which cost nothing
	contestSlow    = 10              // further ones, each a second later than the one before
	contestRespite = 5 * time.Minute // between two tries after those

	// A reset of kubepods or a class comes with every pod that starts or ends, and takes
	// the protection of all pods: it is answered for ever. Beyond so many within
	// contestMemory there is a pace, so that two agents that both follow the kernel's
	// events do not answer each other in a loop.
	contestResets = 120
	contestPace   = time.Second
)

// contests counts the repairs of each file. It is for concurrent use.
type contests struct {
	mu    sync.Mutex
	files map[contestKey]*contest
	now   func() time.Time
}

// contestKey names what is counted: the harmless repairs of a file apart.
type contestKey struct {
	file     ledger.Key
	harmless bool
}

type contest struct {
	harmless bool
	repairs  int
	last     time.Time // repair
}

func newContests() *contests {
	return &contests{files: map[contestKey]*contest{}, now: time.Now}
}

// repair asks whether a file may be repaired now. If so, wait is 0 and the repair
// counts. Else wait is when to ask again, and contested says that the file is all
// but given up, which harmless ones, the resets of kubepods and the classes, never
// are.
func (c *contests) repair(file ledger.Key, harmless bool) (wait time.Duration, contested bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	what := contestKey{file, harmless}
	f := c.files[what]
	if f == nil || now.Sub(f.last) >= f.memory() {
		f = &contest{harmless: harmless}
		c.files[what] = f
	}
	if due := f.pause() - now.Sub(f.last); due > 0 {
		return due, f.contested()
	}
	f.repairs++
	f.last = now
	return 0, false
}

func (f *contest) contested() bool { return !f.harmless && f.repairs >= contestFree+contestSlow }

// pause is how long after the last repair the next may come.
func (f *contest) pause() time.Duration {
	switch {
	case f.harmless && f.repairs >= contestResets:
		return contestPace
	case f.harmless:
		return 0
	case f.contested():
		return contestRespite
	case f.repairs >= contestFree:
		return time.Duration(f.repairs-contestFree+1) * time.Second
	}
	return 0
}

// memory is how long after the last repair it is held against the file.
func (f *contest) memory() time.Duration { return max(contestMemory, f.pause()+contestMemory) }

// contested counts the files that are all but given up, and forgets old repairs.
func (c *contests) contested() (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for key, f := range c.files {
		switch {
		case c.now().Sub(f.last) >= f.memory():
			delete(c.files, key)
		case f.contested():
			n++
		}
	}
	return n
}
