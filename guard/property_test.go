package guard

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/memqos/memqos/memory"
)

// machine is a program of one task that grows, with no swap, and the kernel's
// throttle as calculate_high_delay has it. It is not the kernel: it shows that the
// guard is right if the kernel does what the package says it does.
type machine struct {
	memory.Reading
	pressure memory.Pressure
	perBatch time.Duration // what the program itself takes to fill 64 pages
	max      memory.Value
	ready    time.Duration // when the task has filled its next batch
	from     time.Duration // since when it sleeps
	until    time.Duration // and how long
	slept    time.Duration // in all
	busy     bool          // another task always works
}

const (
	tick  = 10 * time.Millisecond
	batch = 64 * 4096
)

func (m *machine) tick() {
	m.At += tick
	m.count()
	m.ready = max(m.ready, m.At-tick)
	for m.ready < m.At && m.Usage+batch <= m.max {
		m.Usage += batch
		m.ready += m.perBatch
		if m.Usage > m.High {
			m.HighEvent += 17
			if delay := throttleDelay(m.Usage, m.High); delay > 0 {
				m.from, m.until = m.ready, m.ready+delay
				m.ready = m.until // beyond this tick
				m.count()
			}
		}
	}
}

// count adds what the task has slept in this tick.
func (m *machine) count() {
	slept := max(0, min(m.until, m.At)-max(m.from, m.At-tick))
	m.slept += slept
	m.pressure.Some += slept
	if !m.busy {
		m.pressure.Full += slept
	}
}

func (m *machine) reading(psi bool) memory.Reading {
	r := m.Reading
	if psi {
		r.Pressure = new(m.pressure)
	}
	return r
}

func anyLimits(t *rapid.T) Limits {
	lim := Limits{Planned: memory.Value(rapid.Int64Range(20, 32<<10).Draw(t, "high")) * mi, Max: memory.Unlimited, PageSize: 4096}
	if !rapid.Bool().Draw(t, "unlimited") {
		lim.Max = lim.Planned + lim.Planned*memory.Value(rapid.IntRange(2, 300).Draw(t, "percent"))/100
		lim.Max -= lim.Max % 4096
	}
	return lim
}

// A program that only grows is never held for 10 s: it gets through to its limit,
// or what it loses stays below the share that it may lose.
func TestFreesInTime(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		lim := anyLimits(t)
		psi := rapid.Bool().Draw(t, "psi")
		m := machine{
			Reading: memory.Reading{At: 1000 * time.Second, Usage: lim.Planned, High: lim.Planned}, max: lim.Max,
			perBatch: time.Duration(rapid.Int64Range(int64(50*time.Microsecond), int64(200*time.Millisecond)).Draw(t, "perBatch")),
			busy:     rapid.Bool().Draw(t, "busy"),
		}
		m.ready = m.At
		var c Container
		var d Decision
		var due time.Duration
		var seen uint64
		slept := [6000]time.Duration{}
		for i := range slept {
			m.tick()
			slept[i] = m.slept
			if i >= 1000 && slept[i]-slept[i-1000] > 9*time.Second {
				t.Fatalf("at %v it slept %v of the last 10 s: usage %s, high %s, latch %+v, lost %v of %v",
					m.At, slept[i]-slept[i-1000], size(m.Usage), size(m.High), c.Latch, d.Stalled, d.Over)
			}
			if (d.Armed || m.HighEvent == seen) && (d.Next == 0 || m.At < due) {
				continue
			}
			seen = m.HighEvent
			d = c.Observe(DefaultConfig(), lim, m.reading(psi))
			m.High = d.High // as soon as decided; the sleep under way goes on
			due = m.At + d.Next
		}
		if lost := slept[5999] - slept[3999]; lost > 10*time.Second {
			t.Fatalf("in the end it still slept %v of 20 s: usage %s, high %s, latch %+v", lost, size(m.Usage), size(m.High), c.Latch)
		}
	})
}

// Whatever the readings are, memory.high stays within the plan and the limit, is
// never lowered onto what is in use, and is raised only if there were high events.
func TestDecisionsAreSound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		lim := anyLimits(t)
		cfg := Config{
			Enabled: true, StallShare: rapid.Float64Range(0.01, 1).Draw(t, "share"),
			Window: time.Duration(rapid.IntRange(1, 60).Draw(t, "window")) * time.Second,
			Hold:   time.Duration(rapid.IntRange(1, 600).Draw(t, "hold")) * time.Second,
		}
		steps := rapid.IntRange(1, 200).Draw(t, "steps")
		r := memory.Reading{At: time.Hour, High: lim.Planned}
		var p memory.Pressure
		var c Container
		eventAt := time.Duration(-1)
		before := Decision{High: lim.Planned}
		for range steps {
			dt := time.Duration(rapid.SampledFrom([]int{0, 10, 500, 1000, 1000, 1000, 2000, 10000, 400000}).Draw(t, "ms")) * time.Millisecond
			r.At += dt
			r.Usage = lim.Planned * memory.Value(rapid.SampledFrom([]int{0, 50, 87, 95, 100, 102, 110, 120, 200, 400}).Draw(t, "usage")) / 100
			if n := rapid.SampledFrom([]uint64{0, 0, 1, 40}).Draw(t, "events"); n > 0 {
				r.HighEvent += n
				eventAt = r.At
			}
			r.Stolen += rapid.SampledFrom([]uint64{0, 0, 10, 5000}).Draw(t, "stolen")
			r.Frozen = rapid.IntRange(0, 9).Draw(t, "frozen") == 0
			r.Pressure = nil
			if rapid.IntRange(0, 3).Draw(t, "psi") > 0 {
				lost := time.Duration(rapid.Float64Range(0, 1).Draw(t, "full") * float64(dt))
				p.Some, p.Full = p.Some+dt, p.Full+lost
				r.Pressure = new(p)
			}
			d := c.Observe(cfg, lim, r)
			switch {
			case d.High < lim.Planned:
				t.Fatalf("%s is below the plan of %s", d.High, lim.Planned)
			case d.High != memory.Unlimited && d.High > lim.Max:
				t.Fatalf("%s is above the limit of %s", d.High, lim.Max)
			case d.High != memory.Unlimited && d.High%4096 != 0:
				t.Fatalf("%s is no page multiple", d.High)
			case d.High < before.High && d.High < r.Usage+lim.Planned/8-4096:
				t.Fatalf("lowered from %s to %s with %s in use", before.High, d.High, r.Usage)
			case d.High > before.High && (eventAt < 0 || r.At-eventAt > 2*quiet):
				t.Fatalf("raised from %s to %s with no high event since %v", before.High, d.High, r.At-eventAt)
			case d.High > before.High && r.Frozen:
				t.Fatalf("raised from %s to %s while frozen", before.High, d.High)
			case (d.High != before.High) != (d.Message != ""):
				t.Fatalf("from %s to %s, message %q", before.High, d.High, d.Message)
			case (d.Change == Relaxed) != (before.High == lim.Planned && d.High > lim.Planned), (d.Change == Restored) != (before.High > lim.Planned && d.High == lim.Planned):
				t.Fatalf("%q from %s to %s, the plan being %s", d.Change, before.High, d.High, lim.Planned)
			case d.High > lim.Planned && d.Next == 0, d.Armed && (d.Next == 0 || d.Next > busyPeriod):
				t.Fatalf("next in %v, armed %t, at a memory.high of %s: nobody would look again", d.Next, d.Armed, d.High)
			case d.Stalled < 0 || d.Stalled > d.Over || d.Over > cfg.Window+quiet:
				t.Fatalf("lost %v of %v", d.Stalled, d.Over)
			}
			if rapid.Bool().Draw(t, "written") { // the write may come late
				r.High = d.High
			}
			before = d
			if rapid.IntRange(0, 19).Draw(t, "restart") == 0 {
				c = Container{Latch: c.Latch}
			}
		}
	})
}
