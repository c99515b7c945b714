//go:build e2e

package e2e

import (
	"fmt"
	"maps"
	"math"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/memqos/memqos/hack/testnode"
)

// A trace is what the guest's kernel saw: each write to a memory.* file with its
// writer, each cgroup made, each process moved into one, each program begun. It is
// exact where sampling a file would miss what is repaired in between.
type trace struct {
	// held is what the files held when it began, by the last element of the cgroup's
	// path and the file.
	held   map[[2]string]string
	events []traced
}

type traced struct {
	at   time.Duration // since the guest's boot
	who  string        // the thread's name
	pid  int
	kind string // "write", "wrote" (a write of memory.high has returned), "mkdir", "attach", "fork", "exec"

	cgroup string // its last path element
	file   string // of a write
	value  string // of a write; of an exec the program
	child  int    // of an attach: the process; of a fork: the new one
}

// The probes are on the handlers in mm/memcontrol.c. A kernfs_open_file begins with
// its kernfs_node, which has its parent at 8 and its name at 16 (up to 6.12).
const probes = `
p:mq/min memory_min_write cg=+0(+16(+8(+0(%di)))):string val=+0(%si):string
p:mq/low memory_low_write cg=+0(+16(+8(+0(%di)))):string val=+0(%si):string
p:mq/high memory_high_write cg=+0(+16(+8(+0(%di)))):string val=+0(%si):string
p:mq/max memory_max_write cg=+0(+16(+8(+0(%di)))):string val=+0(%si):string
r:mq/wrote memory_high_write
`

const tracefs = "/sys/kernel/tracing"

// startTrace makes the guest's kernel trace, from now on and anew.
func startTrace(t *testing.T, node *testnode.Node) *trace {
	t.Helper()
	sh(t, node, `
		cd `+tracefs+` 2>/dev/null && test -e kprobe_events || { mount -t tracefs tracefs `+tracefs+`; cd `+tracefs+`; }
		echo 0 > tracing_on
		echo mono > trace_clock
		echo 8192 > buffer_size_kb
		test -d events/mq || printf '%s' '`+strings.TrimLeft(probes, "\n")+`' | while read -r p; do echo "$p" >> kprobe_events; done
		echo 1 > events/mq/enable
		echo 1 > events/cgroup/cgroup_mkdir/enable
		echo 1 > events/cgroup/cgroup_attach_task/enable
		echo 1 > events/sched/sched_process_exec/enable
		echo 'comm ~ "runc*"' > events/sched/sched_process_fork/filter
		echo 1 > events/sched/sched_process_fork/enable
		echo > trace
		echo 1 > tracing_on`)
	cgroups, err := node.Cgroups(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	tr := &trace{held: map[[2]string]string{}}
	for cgroup, files := range cgroups {
		for file, value := range files {
			tr.held[[2]string{path.Base(cgroup), file}] = value
		}
	}
	return tr
}

// read takes in what was traced since startTrace.
func (tr *trace) read(t *testing.T, node *testnode.Node) {
	t.Helper()
	out := sh(t, node, "cat "+tracefs+"/trace; grep -h overrun: "+tracefs+"/per_cpu/cpu*/stats")
	if m := regexp.MustCompile(`(?m)^overrun: ([1-9]\d*)$`).FindString(out); m != "" {
		t.Fatalf("the trace is not complete: %s", m)
	}
	tr.events = parseTrace(t, out)
}

var (
	tracedStart = regexp.MustCompile(`(?m)^ *(.{1,16}?)-(\d+) +(?:\(.*?\) +)?\[\d+\] +\S+ +(\d+\.\d+): (\w+): `)
	tracedWrite = regexp.MustCompile(`(?s)cg="([^"]*)" val="([^"]*)"`)
	tracedPath  = regexp.MustCompile(` path=(\S+)`)
	tracedMove  = regexp.MustCompile(` dst_path=(\S+) pid=(\d+)`)
	tracedFork  = regexp.MustCompile(` child_pid=(\d+)`)
	tracedExec  = regexp.MustCompile(`filename=(\S+)`)
)

// parseTrace reads the text of the file trace. A value may end in a newline, which
// is printed as it is.
//
//	systemd-1       [000] .....    62.180311: min: (memory_min_write+0x0/0x90) cg="kubepods-burstable.slice" val="0"
func parseTrace(t *testing.T, out string) []traced {
	t.Helper()
	starts := tracedStart.FindAllStringSubmatchIndex(out, -1)
	var events []traced
	for i, at := range starts {
		end := len(out)
		if i+1 < len(starts) {
			end = starts[i+1][0]
		}
		field := func(n int) string { return out[at[2*n]:at[2*n+1]] }
		rest := out[at[1]:end]
		seconds, err := strconv.ParseFloat(field(3), 64)
		if err != nil {
			t.Fatal(err)
		}
		e := traced{who: field(1), at: time.Duration(math.Round(seconds*1e6)) * time.Microsecond}
		e.pid, _ = strconv.Atoi(field(2)) // digits
		var m []string
		switch name := field(4); name {
		case "min", "low", "high", "max":
			e.kind, e.file = "write", "memory."+name
			if m = tracedWrite.FindStringSubmatch(rest); m != nil {
				e.cgroup, e.value = m[1], strings.TrimSpace(m[2])
			}
		case "wrote":
			e.kind, m = "wrote", []string{""}
		case "cgroup_mkdir":
			e.kind = "mkdir"
			if m = tracedPath.FindStringSubmatch(rest); m != nil {
				e.cgroup = m[1][strings.LastIndexByte(m[1], '/')+1:]
			}
		case "cgroup_attach_task":
			e.kind = "attach"
			if m = tracedMove.FindStringSubmatch(rest); m != nil {
				e.cgroup = m[1][strings.LastIndexByte(m[1], '/')+1:]
				e.child, _ = strconv.Atoi(m[2]) // digits
			}
		case "sched_process_fork":
			e.kind = "fork"
			if m = tracedFork.FindStringSubmatch(rest); m != nil {
				e.child, _ = strconv.Atoi(m[1]) // digits
			}
		case "sched_process_exec":
			e.kind = "exec"
			if m = tracedExec.FindStringSubmatch(rest); m != nil {
				e.value = m[1]
			}
		default:
			continue
		}
		if m == nil {
			t.Fatalf("cannot read in the trace: %q", out[at[0]:end])
		}
		events = append(events, e)
	}
	return events
}

func (e traced) ours() bool { return e.who == "memqos" }

// wrong is a time in which a file did not hold what memqos had written.
type wrong struct {
	cgroup, file string
	by, value    string
	from, to     time.Duration // to is 0 if it was not repaired
}

// wrongs lists the overwrites of values that were right when the trace began or that
// memqos wrote since, in cgroups whose name matches.
func (tr *trace) wrongs(cgroups *regexp.Regexp) []wrong {
	wanted, open := maps.Clone(tr.held), map[[2]string]*wrong{}
	var all []*wrong
	for _, e := range tr.events {
		k := [2]string{e.cgroup, e.file}
		switch {
		case e.kind != "write" || !cgroups.MatchString(e.cgroup):
		case e.ours():
			wanted[k] = e.value
			if w := open[k]; w != nil {
				w.to = e.at
				delete(open, k)
			}
		case wanted[k] != "" && wanted[k] != e.value && open[k] == nil:
			open[k] = &wrong{cgroup: e.cgroup, file: e.file, by: e.who, value: e.value, from: e.at}
			all = append(all, open[k])
		case wanted[k] == e.value && open[k] != nil: // its author put it right
			open[k].to = e.at
			delete(open, k)
		}
	}
	out := make([]wrong, len(all))
	for i, w := range all {
		out[i] = *w
	}
	return out
}

// begin is the start of one container, as the kernel saw it.
type begin struct {
	cgroup string
	made   time.Duration // the cgroup
	first  time.Duration // write of memory.high by memqos
	last   time.Duration // that by which memory.high and memory.min are right for good, before the program
	reset  time.Duration // the last foreign write before the program
	run    time.Duration // the program's exec
}

// begins lists the starts of a program.
func (tr *trace) begins(program string) []begin {
	byCgroup, cgroupOf := map[string]*begin{}, map[int]string{}
	var out []begin
	for _, e := range tr.events {
		b := byCgroup[e.cgroup]
		switch {
		case e.kind == "mkdir":
			byCgroup[e.cgroup] = &begin{cgroup: e.cgroup, made: e.at}
		case e.kind == "attach":
			cgroupOf[e.child] = e.cgroup
		case e.kind == "fork": // runc's init is twice removed from the program
			cgroupOf[e.child] = cgroupOf[e.pid]
		case e.kind == "write" && b != nil && b.run == 0 && e.ours():
			if b.first == 0 {
				b.first = e.at
			}
			b.last = e.at
		case e.kind == "write" && b != nil && b.run == 0:
			b.reset = e.at
		case e.kind == "exec" && e.value == program:
			if b := byCgroup[cgroupOf[e.pid]]; b != nil && b.run == 0 {
				b.run = e.at
				out = append(out, *b)
			}
		}
	}
	return out
}

// spread describes a distribution.
func spread(all []time.Duration) string {
	if len(all) == 0 {
		return "none"
	}
	s := slices.Sorted(slices.Values(all))
	at := func(q float64) time.Duration { return s[int(q*float64(len(s)-1))].Round(10 * time.Microsecond) }
	return fmt.Sprintf("n %d, min %v, median %v, p90 %v, max %v", len(s), at(0), at(0.5), at(0.9), at(1))
}

// sh runs a script in the guest.
func sh(t *testing.T, node *testnode.Node, script string) string {
	t.Helper()
	out, err := node.Run(t.Context(), "sh", "-ec", script)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return out
}
