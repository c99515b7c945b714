package guard

import (
	"fmt"
	"time"

	"github.com/memqos/memqos/memory"
)

// Config says when a container counts as stalled and for how long it is let go.
type Config struct {
	// Enabled turns the guard on. Default: true.
	Enabled bool
	// StallShare is the share of Window, above 0 and at most 1, that a container
	// has lost to the throttle when it is let go. Default: 0.3.
	StallShare float64
	// Window is the time over which that share is taken. A container that is
	// stalled without a break is let go after StallShare of it. At least 1s.
	// Default: 10s.
	Window time.Duration
	// Hold is how long memory.high stays raised at least. It doubles with every
	// stall that follows within twice the last hold, up to 16 times. Default: 5m.
	Hold time.Duration
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{Enabled: true, StallShare: 0.3, Window: 10 * time.Second, Hold: 5 * time.Minute}
}

const (
	// armedPeriod is between two readings of a container that may be stalled:
	// three fit into the 3 s after which one is let go by default.
	armedPeriod = time.Second
	// busyPeriod is between two readings of one that makes high events and is
	// not throttled, as a reader of files does all its life.
	busyPeriod = 2 * time.Second
	// stepPeriod is between two steps back, and between two looks at whether the
	// next one is possible.
	stepPeriod = 10 * time.Second
	// span is how far back events and reclaimed pages are counted. A task sleeps
	// up to 2 s, in which it makes neither.
	span = 2 * time.Second
	// quiet is how long a container without high events stays armed.
	quiet = 5 * time.Second

	maxHolds = 16

	// stolenPerEvent is the pages reclaimed for a high event below which reclaim
	// is in vain. One that works reclaims 32 or more (SWAP_CLUSTER_MAX,
	// MEMCG_CHARGE_BATCH); of the stalled one, 1500 events reclaimed none.
	stolenPerEvent = 4
	// thrashShare is the share of Window that must be lost if pages are being
	// reclaimed: every one of them was needed, and is read again.
	thrashShare = 0.9
	// thrashOveruse is the over-use, in bytes, that readers of files do not reach
	// by chance; from 80 MiB of memory.high on, a twentieth of it is.
	thrashOveruse = 4 << 20
)

// Limits is what holds for a container beside the guard.
type Limits struct {
	Planned  memory.Value // memory.high of the plan
	Max      memory.Value // memory.max
	PageSize int64
}

// Latch is what outlives the agent. Its times are CLOCK_MONOTONIC, so it means
// something until the node restarts, and so does the cgroup. The zero Latch is
// that of a container that never stalled.
type Latch struct {
	// High is what memory.high is raised to; 0: not raised.
	High memory.Value `json:"high,omitzero"`
	// Since is when High was last changed.
	Since time.Duration `json:"since,omitzero"`
	// Hold is how long High stays, and after it came back, what the next one doubles.
	Hold time.Duration `json:"hold,omitzero"`
	// Returning says that High is on its way back.
	Returning bool `json:"returning,omitzero"`
}

// Relaxed reports whether memory.high is above the plan.
func (l Latch) Relaxed() bool { return l.High != 0 }

// Change is a change of state; its value is the reason of the event to send.
type Change string

// The changes of state. A further raise or a step back is none.
const (
	Unchanged Change = ""
	Relaxed   Change = "MemoryThrottleRelaxed"
	Restored  Change = "MemoryThrottleRestored"
)

// Decision is what follows from a reading.
type Decision struct {
	// High is what memory.high should hold: the plan's value, or a higher one
	// that is below memory.max, or memory.Unlimited.
	High   memory.Value
	Change Change
	// Message says why, for people. It is empty if High is as before.
	Message string
	// Next is the time until the next reading is due; 0: when memory.events changes.
	Next time.Duration
	// Armed says that changes of memory.events can be ignored until then. If it is
	// not, a change makes the reading due at once.
	Armed bool
	// Stalled is how much of the time Over, which ends now and is longer than Window
	// by less than the time between two readings, was lost to the throttle.
	Stalled, Over time.Duration
}

// Container is one container, or any cgroup that has a memory.high, under guard.
// A cgroup that was made anew is another Container.
type Container struct {
	Latch Latch

	trail     []sample // of the last Window, oldest first
	lastEvent time.Duration
}

// sample is a reading and what was lost since the one before it.
type sample struct {
	memory.Reading
	stalled   time.Duration // to the throttle, with nothing to reclaim
	thrashing time.Duration // to the throttle, while pages were reclaimed
	throttled bool
}

// Observe takes a reading, to be made when the last Decision says, and decides.
func (c *Container) Observe(cfg Config, lim Limits, r memory.Reading) Decision {
	if c.Latch.Since > r.At {
		c.Latch = Latch{} // of before the node restarted
	}
	if !c.Latch.Relaxed() && r.At-c.Latch.Since >= 2*c.Latch.Hold {
		c.Latch = Latch{}
	}
	switch {
	case !cfg.Enabled:
		return c.drop(lim, "the stall guard is off")
	case lim.Planned == memory.Unlimited, c.Latch.High != memory.Unlimited && c.Latch.Relaxed() && lim.Planned >= c.Latch.High:
		return c.drop(lim, "the plan asks for as much by now")
	}
	if c.Latch.High > lim.Max { // which was lowered since
		c.Latch.High = memory.Unlimited
	}
	c.add(cfg, lim, r)
	d := c.weigh(cfg, lim, r)
	if d.Message != "" {
		c.trail = nil // what was lost under the old value does not count against the new one
	}
	return d
}

func (c *Container) weigh(cfg Config, lim Limits, r memory.Reading) Decision {
	d := Decision{High: lim.Planned, Next: c.armed(r)}
	d.Armed = d.Next > 0
	var thrashing time.Duration
	for i := len(c.trail) - 1; i > 0 && c.trail[i].At > r.At-cfg.Window; i-- {
		d.Stalled += c.trail[i].stalled
		thrashing += c.trail[i].thrashing
		d.Over = r.At - c.trail[i-1].At
	}
	enough := time.Duration(cfg.StallShare * float64(cfg.Window))
	if c.Latch.Relaxed() {
		d.High = c.Latch.High
		enough /= 3 // it was stalled a moment ago
	}
	stalled := d.Stalled > 0 && d.Stalled >= enough
	if all := d.Stalled + thrashing; thrashing > 0 && float64(all) >= thrashShare*float64(cfg.Window) {
		d.Stalled, stalled = all, true
	}
	switch {
	case stalled:
		c.raise(cfg, lim, r, &d)
	case c.Latch.Relaxed():
		c.comeBack(lim, r, &d)
	}
	return d
}

// drop ends the guard's say.
func (c *Container) drop(lim Limits, why string) Decision {
	d := Decision{High: lim.Planned}
	if c.Latch.Relaxed() {
		d.Change = Restored
		d.Message = fmt.Sprintf("memory.high is back at %s from %s: %s", size(lim.Planned), size(c.Latch.High), why)
	}
	*c = Container{}
	return d
}

// add puts a reading on the trail.
func (c *Container) add(cfg Config, lim Limits, r memory.Reading) {
	if len(c.trail) == 0 || !follows(&c.trail[len(c.trail)-1].Reading, &r) {
		c.trail, c.lastEvent = []sample{{Reading: r}}, r.At
		return
	}
	prev := &c.trail[len(c.trail)-1]
	if r.HighEvent > prev.HighEvent {
		c.lastEvent = r.At
	}
	base := &c.trail[0]
	for i := range c.trail {
		if c.trail[i].At <= r.At-span {
			base = &c.trail[i]
		}
	}
	s := sample{Reading: r}
	// A value that is not the latch's is about to be written over.
	if c.Latch.Relaxed() && r.High != c.Latch.High {
		c.trail = append(c.trail, s)
		return
	}
	events, stolen := r.HighEvent-base.HighEvent, r.Stolen-base.Stolen
	s.throttled = events > 0 && !r.Frozen && !prev.Frozen && throttleDelay(r.Usage, r.High) > 0
	if s.throttled {
		switch {
		case stolen < stolenPerEvent*events:
			s.stalled = lost(&base.Reading, &prev.Reading, &r, lim.PageSize)
		case r.Usage-r.High > max(r.High/20, thrashOveruse):
			_, full := waited(&prev.Reading, &r)
			s.thrashing = full
		}
	}
	c.trail = append(c.trail, s)
	for len(c.trail) > 1 && c.trail[1].At <= r.At-max(cfg.Window, span) {
		c.trail = c.trail[1:]
	}
}

// follows reports whether two readings are of one stretch of time in which the
// same memory.high held.
func follows(a, b *memory.Reading) bool {
	return b.At > a.At && b.At-a.At <= quiet && b.High == a.High && b.HighEvent >= a.HighEvent && b.Stolen >= a.Stolen
}

// throttleDelay is how long the kernel lets a task sleep for a batch that it
// charged; see the package's comment.
func throttleDelay(usage, high memory.Value) time.Duration {
	if usage <= high {
		return 0
	}
	f := float64(usage-high) / float64(max(high, 4096))
	if d := min(64*f*f, 2); d > 0.01 {
		return time.Duration(d * float64(time.Second))
	}
	return 0
}

// lost is how much of the time between prev and r was lost to the throttle. Full
// pressure says it. Full is 0, though, if one task is stalled and another works:
// then, and where PSI is off, it follows from what was charged since base and
// what the kernel makes of that; never more than some task has waited.
func lost(base, prev, r *memory.Reading, pageSize int64) time.Duration {
	dt := r.At - prev.At
	pages := int64(max(r.Usage-base.Usage, 0))/pageSize + int64(r.Stolen-base.Stolen)
	batches := float64(pages) / 64
	delay := throttleDelay((base.Usage+r.Usage)/2, r.High)
	reckoned := min(time.Duration(batches*float64(delay)/float64(r.At-base.At)*float64(dt)), dt)
	if r.Pressure == nil || prev.Pressure == nil {
		return reckoned
	}
	some, full := waited(prev, r)
	return max(full, min(some, reckoned))
}

// waited is the pressure between two readings: 0 where PSI is off.
func waited(prev, r *memory.Reading) (some, full time.Duration) {
	if r.Pressure == nil || prev.Pressure == nil {
		return 0, 0
	}
	dt := r.At - prev.At
	return min(max(r.Pressure.Some-prev.Pressure.Some, 0), dt), min(max(r.Pressure.Full-prev.Pressure.Full, 0), dt)
}

// armed returns the time until the next reading of a container that makes high
// events, and 0 for one that does not.
func (c *Container) armed(r memory.Reading) time.Duration {
	last := c.trail[len(c.trail)-1]
	near := r.High != memory.Unlimited && r.Usage >= r.High-r.High/16
	switch {
	case r.At-c.lastEvent >= quiet, len(c.trail) == 1 && !near:
		c.trail = c.trail[:1:1]
		c.trail[0] = sample{Reading: r}
		return 0
	case len(c.trail) == 1, last.throttled:
		return armedPeriod
	}
	return busyPeriod
}

// raise lets the container go: first with headroom, then altogether.
func (c *Container) raise(cfg Config, lim Limits, r memory.Reading, d *Decision) {
	from := r.High
	to := memory.Unlimited
	if again := c.Latch.Relaxed(); !again {
		d.Change = Relaxed
		if base := max(r.Usage, r.High, lim.Planned); base < memory.Unlimited/2 {
			to = memory.Bytes(int64(base+base/4), lim.PageSize)
		}
		c.Latch.Hold = min(max(2*c.Latch.Hold, cfg.Hold), maxHolds*cfg.Hold)
	} else if c.Latch.Returning {
		c.Latch.Hold = min(2*c.Latch.Hold, maxHolds*cfg.Hold)
	}
	if lim.Max != memory.Unlimited && to >= lim.Max-lim.Max/16 {
		to = memory.Unlimited // what is left below the limit is not worth another stall
	}
	c.Latch.High, c.Latch.Since, c.Latch.Returning = to, r.At, false
	base := c.trail[0].Reading
	limit := "there is no limit"
	if lim.Max != memory.Unlimited {
		limit = "the limit of " + size(lim.Max) + " still holds"
	}
	d.Message = fmt.Sprintf("memory.high raised from %s to %s, %s: with %s in use (%s anonymous) it lost %s of the last %s to throttling; %d high events reclaimed %d pages. "+
		"Raise the memory request or limit, or exempt the pod by its annotation",
		size(from), size(to), limit, size(r.Usage), size(r.Anon), seconds(d.Stalled), seconds(d.Over), r.HighEvent-base.HighEvent, r.Stolen-base.Stolen)
	d.High, d.Next, d.Armed = to, armedPeriod, true
}

// comeBack takes a step towards the plan once the hold is over and usage is an
// eighth below it, so that no step lands on what is in use.
func (c *Container) comeBack(lim Limits, r memory.Reading, d *Decision) {
	wait := c.Latch.Hold
	if c.Latch.Returning {
		wait = stepPeriod
	}
	next := c.Latch.Since + wait - r.At
	if next <= 0 {
		next = stepPeriod
		if r.Usage <= lim.Planned-lim.Planned/8 {
			c.step(lim, r, d)
		}
	}
	if c.Latch.Relaxed() && (d.Next == 0 || next < d.Next) {
		d.Next = next
	}
}

func (c *Container) step(lim Limits, r memory.Reading, d *Decision) {
	from := c.Latch.High
	excess := max(min(from, lim.Max)-lim.Planned, 0)
	if lim.Planned < memory.Unlimited/2 {
		excess = min(excess, 2*lim.Planned)
	}
	to := memory.Bytes(int64(lim.Planned+excess/2), lim.PageSize)
	c.Latch.Since, c.Latch.Returning = r.At, true
	if to-lim.Planned > lim.Planned/8 {
		c.Latch.High, d.High = to, to
		d.Message = fmt.Sprintf("memory.high lowered from %s to %s, on its way back to %s: %s in use", size(from), size(to), size(lim.Planned), size(r.Usage))
		return
	}
	c.Latch.High, c.Latch.Returning = 0, false
	d.High, d.Change = lim.Planned, Restored
	d.Message = fmt.Sprintf("memory.high is back at %s from %s: %s in use", size(lim.Planned), size(from), size(r.Usage))
}

// size is a value for people; that of a usage divides by no unit.
func size(v memory.Value) string {
	if v == memory.Unlimited {
		return "max"
	}
	return fmt.Sprintf("%.1fMi", float64(v)/(1<<20))
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.1fs", d.Seconds()) }
