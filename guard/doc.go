// Package guard decides when a container is stalled at memory.high, and what
// memory.high should hold until it is not. It is pure: readings come in, with the
// time at which they were taken, and a decision goes out.
//
// The stall (kubernetes#118699): memory.high is over-used, reclaim finds nothing,
// as with anonymous memory and no swap, and the kernel lets each task sleep on its
// way back to user space instead (mm/memcontrol.c, mem_cgroup_handle_over_high and
// calculate_high_delay). With an over-use of f, as a share of
// memory.high, it sleeps 64 f² seconds for each batch of 64 pages that it charged,
// 2 s at the most, and not at all for 10 ms or less. An over-use of 1.25 % is the
// least that makes a task sleep; at 12 % a task gets 0.3 MiB a second; at 17.7 % a
// batch takes the 2 s.
//
// Since 5.9 the sleep comes only once reclaim has yielded nothing, 16 times over. So what
// is stalled shows an over-use above 1.25 %, high events, and next to no pages
// reclaimed for them. What is merely slow does not: a reader of files has its
// pages reclaimed and stays at memory.high, whatever its disk does; what lacks
// CPU, is frozen or stopped charges nothing and makes no high events.
package guard
