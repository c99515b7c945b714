package guard

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/memqos/memqos/memory"
)

const (
	mi     = memory.Value(1 << 20)
	second = time.Second
)

// rate is what a container does in a second.
type rate struct {
	grow                memory.Value // may be negative
	events              uint64
	scan, steal, refalt uint64 // pages
	some, full          float64
	frozen              bool
}

// phase is a rate that lasts.
type phase struct {
	seconds int
	rate
}

func forSeconds(n int, r rate) phase { return phase{n, r} }

// trace is the readings of a container that lives through phases, one a second.
func trace(high, usage memory.Value, psi bool, phases ...phase) []memory.Reading {
	r := memory.Reading{At: 1000 * second, Usage: usage, High: high, HighEvent: 1}
	p := memory.Pressure{}
	var out []memory.Reading
	take := func() {
		if r.Pressure = nil; psi {
			r.Pressure = new(p)
		}
		r.Anon = r.Usage - r.File
		out = append(out, r)
	}
	take()
	for _, ph := range phases {
		for range ph.seconds {
			r.At += second
			r.Usage += ph.grow
			r.HighEvent += ph.events
			r.Scanned += ph.scan
			r.Stolen += ph.steal
			r.Refaults += ph.refalt
			r.Faults += ph.steal + uint64(max(ph.grow, 0)/4096)
			r.Frozen = ph.frozen
			p.Some += time.Duration(ph.some * float64(second))
			p.Full += time.Duration(ph.full * float64(second))
			take()
		}
	}
	return out
}

var (
	// The facts: high=150M, ~5 s per MiB, ~1500 high events in 40 s, full 64 %,
	// pgscan=2 and pgsteal=0 in all.
	swapless = rate{grow: mi / 5, events: 37, some: .66, full: .64}
	idle     = rate{}
	// A dd over a file larger than memory.high: reclaim keeps up.
	reader = rate{events: 200, scan: 14000, steal: 12800, refalt: 12000, some: .55, full: .5}
)

func TestStalled(t *testing.T) {
	for _, tc := range []struct {
		name    string
		high    memory.Value
		usage   memory.Value
		phases  []phase
		psiOnly bool // cannot be told without PSI
		within  int  // seconds until it is relaxed, 3 more without PSI; 0: it must not be
	}{
		{name: "swapless anonymous growth, as measured", high: 150 * mi, usage: 167 * mi, phases: []phase{forSeconds(60, swapless)}, within: 6},
		{name: "its first seconds", high: 150 * mi, usage: 150 * mi, phases: []phase{
			forSeconds(1, rate{grow: 6 * mi, events: 400, some: .9, full: .9}), forSeconds(4, rate{grow: 1 * mi, events: 60, some: .95, full: .95}), forSeconds(30, swapless)}, within: 5},
		{name: "all tasks asleep for 2 s at a time", high: 100 * mi, usage: 120 * mi, phases: []phase{
			forSeconds(1, rate{grow: mi / 4, events: 17, some: 1, full: 1}), forSeconds(1, rate{some: 1, full: 1}),
			forSeconds(1, rate{grow: mi / 4, events: 17, some: 1, full: 1}), forSeconds(1, rate{some: 1, full: 1}),
			forSeconds(1, rate{grow: mi / 4, events: 17, some: 1, full: 1}), forSeconds(1, rate{some: 1, full: 1})}, within: 4},
		{name: "one task stalled, another busy", high: 150 * mi, usage: 167 * mi, phases: []phase{forSeconds(60, rate{grow: mi / 4, events: 40, some: .9})}, within: 6},
		{name: "a little file cache left", high: 150 * mi, usage: 167 * mi, phases: []phase{forSeconds(60, rate{grow: mi / 5, events: 37, scan: 300, steal: 20, some: .7, full: .7})}, within: 6},
		{name: "every page reclaimed is read again", high: 150 * mi, usage: 160 * mi, psiOnly: true,
			phases: []phase{forSeconds(60, rate{events: 50, scan: 9000, steal: 2000, refalt: 2000, some: 1, full: .97})}, within: 11},
		{name: "reader, then growth", high: 150 * mi, usage: 150 * mi, phases: []phase{
			forSeconds(20, reader), forSeconds(1, rate{grow: 10 * mi, events: 300, some: .9, full: .8}), forSeconds(30, swapless)}, within: 28},

		{name: "reader of files at its high", high: 150 * mi, usage: 150 * mi, phases: []phase{forSeconds(600, reader)}},
		{name: "reader on a slow disk", high: 150 * mi, usage: 150*mi + mi/4, phases: []phase{forSeconds(600, rate{events: 3, scan: 110, steal: 100, refalt: 100, some: .99, full: .98})}},
		{name: "readers that overshoot", high: 150 * mi, usage: 153 * mi, phases: []phase{forSeconds(600, rate{events: 900, scan: 50000, steal: 40000, refalt: 38000, some: .99, full: .95})}},
		{name: "reclaims more slowly than it grows, and gets on", high: 150 * mi, usage: 160 * mi, phases: []phase{forSeconds(600, rate{events: 50, scan: 9000, steal: 2000, some: .9, full: .6})}},
		{name: "CPU-starved in reclaim", high: 150 * mi, usage: 150*mi + mi, phases: []phase{forSeconds(600, rate{events: 2, scan: 40, steal: 30, some: .95, full: .95})}},
		{name: "CPU-starved growth at the brink", high: 150 * mi, usage: 145 * mi, phases: []phase{forSeconds(600, rate{grow: mi / 100, events: 2, some: .4, full: .4})}},
		{name: "stopped by a signal while over high", high: 150 * mi, usage: 165 * mi, phases: []phase{forSeconds(1, swapless), forSeconds(600, idle)}},
		{name: "frozen while over high", high: 150 * mi, usage: 165 * mi, phases: []phase{forSeconds(600, rate{events: 1, some: 1, full: 1, frozen: true})}},
		{name: "stable at 95 %", high: 150 * mi, usage: 142 * mi, phases: []phase{forSeconds(600, idle)}},
		{name: "over high and all but idle", high: 150 * mi, usage: 155 * mi, phases: []phase{forSeconds(600, rate{events: 2, some: .01, full: .01})}},
		{name: "build: bursts over high", high: 150 * mi, usage: 120 * mi, phases: bursts(60)},
		{name: "slow disk, no high event", high: 150 * mi, usage: 140 * mi, phases: []phase{forSeconds(600, rate{some: 1, full: 1})}},
		{name: "over high, pressure from elsewhere, no high event", high: 150 * mi, usage: 170 * mi, phases: []phase{forSeconds(600, rate{some: 1, full: 1})}},
	} {
		for _, psi := range []bool{true, false} {
			if tc.psiOnly && !psi {
				continue
			}
			t.Run(tc.name+map[bool]string{true: "", false: "/psi off"}[psi], func(t *testing.T) {
				lim := Limits{Planned: tc.high, Max: 400 * mi, PageSize: 4096}
				var c Container
				relaxed, within := 0, tc.within
				if !psi && within > 0 {
					within += 3
				}
				for i, r := range trace(tc.high, tc.usage, psi, tc.phases...) {
					if d := c.Observe(DefaultConfig(), lim, r); d.Change == Relaxed && relaxed == 0 {
						relaxed = i
						t.Logf("after %d s: %s", i, d.Message)
					}
				}
				if (relaxed > 0) != (within > 0) || relaxed > within {
					t.Errorf("relaxed after %d s, want within %d (0: never)", relaxed, within)
				}
			})
		}
	}
}

// bursts is a build: a compiler grows over memory.high, is throttled for a moment,
// and ends; others run.
func bursts(n int) []phase {
	var out []phase
	for range n {
		out = append(out, forSeconds(4, rate{grow: 8 * mi, events: 30, scan: 3000, steal: 2500, some: .3, full: .1}),
			forSeconds(1, rate{grow: 6 * mi, events: 120, some: .8, full: .3}), forSeconds(1, rate{grow: -38 * mi}), forSeconds(4, rate{}))
	}
	return out
}

// One stall from beginning to end: raised with headroom, then altogether, held,
// taken back in steps once usage has fallen, raised again for twice as long.
func TestLife(t *testing.T) {
	cfg, lim := DefaultConfig(), Limits{Planned: 150 * mi, Max: 400 * mi, PageSize: 4096}
	var c Container
	var got []string
	r := memory.Reading{At: 1000 * second, Usage: 160 * mi, High: lim.Planned, HighEvent: 1, Pressure: &memory.Pressure{}}
	// live lets the container live for a time, read as often as it is asked for.
	live := func(total time.Duration, usage func(time.Duration) memory.Value, stalled bool) {
		begin := r.At
		r.Usage = usage(0)
		for r.At < begin+total {
			d := c.Observe(cfg, lim, r)
			if d.Message != "" {
				got = append(got, strings.TrimSpace(string(d.Change)+" "+size(r.High)+" to "+size(d.High)))
			}
			if data, err := json.Marshal(c.Latch); err != nil {
				t.Fatal(err)
			} else { // the agent restarts after each reading that is no part of a stall
				var latch Latch
				if err := json.Unmarshal(data, &latch); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(c.Latch, latch); diff != "" {
					t.Fatalf("latch: -want +got:\n%s", diff)
				}
				if !stalled {
					c = Container{Latch: latch}
				}
			}
			wait := begin + total - r.At
			if d.Next > 0 {
				wait = min(wait, d.Next)
			}
			r.At += wait
			r.High = d.High
			r.Usage = usage(r.At - begin)
			if stalled {
				r.HighEvent += uint64(37 * wait.Seconds())
				r.Pressure = &memory.Pressure{Some: r.Pressure.Some + wait, Full: r.Pressure.Full + wait}
			}
		}
	}
	at := func(v memory.Value) func(time.Duration) memory.Value {
		return func(time.Duration) memory.Value { return v }
	}
	live(4*second, at(165*mi), true)
	live(3*second, at(230*mi), true)
	got = append(got, "usage falls")
	live(4*time.Minute, at(100*mi), false)
	got = append(got, "4m")
	live(3*time.Minute, at(100*mi), false)
	got = append(got, "7m")
	live(6*second, at(165*mi), true)
	if c.Latch.Hold != 2*cfg.Hold {
		t.Errorf("second hold is %v, want %v", c.Latch.Hold, 2*cfg.Hold)
	}
	got = append(got, "usage stays")
	live(time.Hour, at(140*mi), false)
	want := []string{
		"MemoryThrottleRelaxed 150.0Mi to 206.2Mi", "206.2Mi to max", "usage falls", "4m",
		"max to 275.0Mi", "275.0Mi to 212.5Mi", "212.5Mi to 181.2Mi", "MemoryThrottleRestored 181.2Mi to 150.0Mi", "7m",
		"MemoryThrottleRelaxed 150.0Mi to 206.2Mi", "usage stays",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// Pressure counts while there are high events, and no longer.
func TestShortWindow(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Window = 2 * second
	waiting := rate{some: 1, full: 1}
	var c Container
	for _, r := range trace(150*mi, 170*mi, true, forSeconds(1, rate{grow: -30 * mi, events: 1}), forSeconds(1, rate{grow: 30 * mi}), forSeconds(4, waiting)) {
		if d := c.Observe(cfg, Limits{Planned: 150 * mi, Max: 400 * mi, PageSize: 4096}, r); d.Change != Unchanged {
			t.Fatal(d.Message)
		}
	}
}

func TestMessage(t *testing.T) {
	var c Container
	for _, r := range trace(150*mi, 167*mi, true, forSeconds(60, swapless)) {
		if d := c.Observe(DefaultConfig(), Limits{Planned: 150 * mi, Max: 400 * mi, PageSize: 4096}, r); d.Change == Relaxed {
			want := "memory.high raised from 150.0Mi to 210.0Mi, the limit of 400.0Mi still holds: with 168.0Mi in use (168.0Mi anonymous) it lost 3.3s of the last 5.0s to throttling; 185 high events reclaimed 0 pages. " +
				"Raise the memory request or limit, or exempt the pod by its annotation"
			if diff := cmp.Diff(want, d.Message); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			return
		}
	}
	t.Error("never relaxed")
}

func TestNothingToGuard(t *testing.T) {
	relaxed := Latch{High: 200 * mi, Since: second, Hold: time.Hour}
	reading := memory.Reading{At: 2 * second, Usage: 160 * mi, High: 200 * mi}
	lim := Limits{Planned: 150 * mi, Max: 400 * mi, PageSize: 4096}
	off := DefaultConfig()
	off.Enabled = false
	for _, tc := range []struct {
		name   string
		cfg    Config
		lim    Limits
		latch  Latch
		at     time.Duration
		high   memory.Value
		change Change
	}{
		{"held", DefaultConfig(), lim, relaxed, 0, 200 * mi, Unchanged},
		{"off", off, lim, relaxed, 0, 150 * mi, Restored},
		{"off and never relaxed", off, lim, Latch{}, 0, 150 * mi, Unchanged},
		{"no memory.high any more", DefaultConfig(), Limits{Planned: memory.Unlimited, Max: 400 * mi, PageSize: 4096}, relaxed, 0, memory.Unlimited, Restored},
		{"the plan is beyond it", DefaultConfig(), Limits{Planned: 250 * mi, Max: 400 * mi, PageSize: 4096}, relaxed, 0, 250 * mi, Restored},
		{"the limit is below it", DefaultConfig(), Limits{Planned: 150 * mi, Max: 180 * mi, PageSize: 4096}, relaxed, 0, memory.Unlimited, Unchanged},
		{"the node restarted", DefaultConfig(), lim, relaxed, second / 2, 150 * mi, Unchanged},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, r := Container{Latch: tc.latch}, reading
			if tc.at != 0 {
				r.At = tc.at
			}
			if d := c.Observe(tc.cfg, tc.lim, r); d.High != tc.high || d.Change != tc.change || (d.Change != Unchanged) != (d.Message != "") {
				t.Errorf("got %s, %q, %q, want %s, %q", d.High, d.Change, d.Message, tc.high, tc.change)
			}
		})
	}
}

func TestThrottleDelay(t *testing.T) {
	for over, want := range map[memory.Value]time.Duration{ // in thousandths of memory.high
		-10: 0, 0: 0, 12: 0, 20: 25600 * time.Microsecond, 125: second, 200: 2 * second, 3000: 2 * second,
	} {
		if got := throttleDelay(1000*mi+over*mi, 1000*mi).Round(time.Microsecond); got != want {
			t.Errorf("over by %d per mille: %v, want %v", over, got, want)
		}
	}
}
