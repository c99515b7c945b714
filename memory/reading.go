package memory

import "time"

// Events are the counters of a cgroup's memory.events, which includes its
// descendants', or of its memory.events.local, which does not. They only rise
// while the cgroup lives.
type Events struct {
	Low, High, Max uint64 // times reclaimed below low; over high; about to go over max
	OOM            uint64 // times that this cgroup's own limit left nothing but the OOM killer
	OOMKill        uint64 // processes of the cgroup killed by any OOM killer, the node's included
	OOMGroupKill   uint64 // times killed as a group (memory.oom.group); since 5.17, else 0
}

// Pressure is the time lost to waiting for memory since the cgroup was made:
// total= of memory.pressure.
type Pressure struct {
	Some time.Duration // some task waited
	Full time.Duration // every task that was not idle waited
}

// Reading is what the kernel shows of a cgroup's memory at one moment. Counts
// are of pages and include the cgroup's descendants, unless said otherwise.
type Reading struct {
	At        time.Duration // CLOCK_MONOTONIC
	Usage     Value         // memory.current
	High      Value         // memory.high
	HighEvent uint64        // high of memory.events.local: of this cgroup alone
	Pressure  *Pressure     // nil where the kernel has PSI off
	Frozen    bool          // by the freezer; a process stopped by a signal is not

	Anon, File  Value  // bytes of memory.stat
	Scanned     uint64 // pgscan
	Stolen      uint64 // pgsteal: reclaimed
	Faults      uint64 // pgfault, major faults included
	MajorFaults uint64 // pgmajfault
	Refaults    uint64 // workingset_refault_anon and _file: reclaimed too early

	CPU time.Duration // usage_usec of cpu.stat
}
