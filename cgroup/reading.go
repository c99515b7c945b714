package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"time"

	"golang.org/x/sys/unix"

	"github.com/memqos/memqos/memory"
)

// statSize is more than a file that a Reading is made of can fill; memory.stat is
// the longest. One that does fill it is an error.
const statSize = 8192

// slurp reads a whole small file into buf.
func (d *Dir) slurp(file memory.File, buf []byte) ([]byte, error) {
	fd, err := openBeneath(d.fd, string(file), unix.O_RDONLY|unix.O_NOCTTY)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: d.path(file), Err: err}
	}
	defer unix.Close(fd) //nolint:errcheck // read only
	n, err := unix.Pread(fd, buf, 0)
	if err == nil && n == len(buf) {
		err = fmt.Errorf("longer than %d bytes", len(buf)-1)
	}
	if err != nil {
		return nil, &fs.PathError{Op: "read", Path: d.path(file), Err: gone(err)}
	}
	return buf[:n], nil
}

// parsed names the file in an error of its parser.
func (d *Dir) parsed(file memory.File, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: "parse", Path: d.path(file), Err: err}
}

// Events reads memory.events (total, the descendants' included) and
// memory.events.local (the cgroup's own; since 5.2).
func (d *Dir) Events() (total, local memory.Events, err error) {
	if total, err = d.events("memory.events"); err == nil {
		local, err = d.events("memory.events.local")
	}
	return total, local, err
}

func (d *Dir) events(file memory.File) (memory.Events, error) {
	var buf [statSize]byte
	data, err := d.slurp(file, buf[:])
	if err != nil {
		return memory.Events{}, err
	}
	e, err := parseEvents(data)
	return e, d.parsed(file, err)
}

// Pressure reads memory.pressure. It is nil where the kernel has PSI off: no such
// file (CONFIG_PSI, or cgroup.pressure, since 6.1, is 0), or one that cannot be
// read (psi=0).
func (d *Dir) Pressure() (*memory.Pressure, error) {
	var buf [statSize]byte
	data, err := d.slurp("memory.pressure", buf[:])
	if errors.Is(err, unix.EOPNOTSUPP) { // which ENOTSUP is, on Linux
		return nil, nil
	}
	if IsGone(err) {
		_, err = d.Usage() // tells a cgroup without the file from one that is gone
		return nil, err
	}
	if err != nil {
		return nil, err
	}
	p, err := parsePressure(data)
	if err != nil {
		return nil, d.parsed("memory.pressure", err)
	}
	return &p, nil
}

// Reading reads what tells a cgroup that is stalled at memory.high from one that
// is busy. The files are read one after the other, not at one moment.
func (d *Dir) Reading() (memory.Reading, error) {
	var r memory.Reading
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return r, fmt.Errorf("read the monotonic clock: %w", err)
	}
	r.At = time.Duration(now.Nano())
	var err error
	if r.Usage, err = d.Usage(); err != nil {
		return r, err
	}
	if r.High, err = d.Value(memory.High); err != nil {
		return r, err
	}
	local, err := d.events("memory.events.local")
	if err != nil {
		return r, err
	}
	r.HighEvent = local.High
	if r.Pressure, err = d.Pressure(); err != nil {
		return r, err
	}
	for _, file := range [...]memory.File{"memory.stat", "cgroup.events", "cpu.stat"} {
		if err := d.count(file, &r); err != nil {
			return r, err
		}
	}
	return r, nil
}

// count adds what a flat-keyed file holds to r.
func (d *Dir) count(file memory.File, r *memory.Reading) error {
	var buf [statSize]byte
	data, err := d.slurp(file, buf[:])
	if err != nil {
		return err
	}
	return d.parsed(file, parseReading(data, r))
}

// field takes the first line off a flat-keyed file:
//
//	anon 1462272
//	file 4509696
//
// It is no function that takes a function: then data would be on the heap.
func field(data []byte) (key []byte, value uint64, rest []byte, err error) {
	line, rest, _ := bytes.Cut(data, []byte{'\n'})
	key, text, _ := bytes.Cut(line, []byte{' '})
	value, ok := number(text)
	if len(key) == 0 || !ok {
		return nil, 0, nil, fmt.Errorf("line %q: want a key and a number", string(line))
	}
	return key, value, rest, nil
}

// number reads decimal digits without making a string of them.
func number(text []byte) (uint64, bool) {
	var n uint64
	for _, c := range text {
		d := uint64(c - '0')
		if d > 9 || n > (math.MaxUint64-d)/10 {
			return 0, false
		}
		n = n*10 + d
	}
	return n, len(text) > 0
}

func parseEvents(data []byte) (memory.Events, error) {
	var e memory.Events
	for len(data) > 0 {
		key, value, rest, err := field(data)
		if err != nil {
			return e, err
		}
		data = rest
		switch string(key) {
		case "low":
			e.Low = value
		case "high":
			e.High = value
		case "max":
			e.Max = value
		case "oom":
			e.OOM = value
		case "oom_kill":
			e.OOMKill = value
		case "oom_group_kill":
			e.OOMGroupKill = value
		}
	}
	return e, nil
}

// parseReading takes what a Reading holds from memory.stat, cgroup.events or
// cpu.stat, which have no key in common.
func parseReading(data []byte, r *memory.Reading) error {
	for len(data) > 0 {
		key, value, rest, err := field(data)
		if err != nil {
			return err
		}
		data = rest
		switch string(key) {
		case "anon":
			r.Anon = memory.Value(min(value, math.MaxInt64))
		case "file":
			r.File = memory.Value(min(value, math.MaxInt64))
		case "pgscan":
			r.Scanned = value
		case "pgsteal":
			r.Stolen = value
		case "pgfault":
			r.Faults = value
		case "pgmajfault":
			r.MajorFaults = value
		case "workingset_refault", "workingset_refault_anon", "workingset_refault_file": // the first up to 5.8
			r.Refaults += value
		case "frozen":
			r.Frozen = value != 0
		case "usage_usec":
			r.CPU = usec(value)
		}
	}
	return nil
}

func usec(n uint64) time.Duration {
	return time.Duration(min(n, math.MaxInt64/uint64(time.Microsecond))) * time.Microsecond
}

// parsePressure takes the totals, in microseconds. The averages lag: after ten
// seconds of a stall avg10 shows 63 % of it.
//
//	some avg10=0.00 avg60=0.00 avg300=0.00 total=0
//	full avg10=0.00 avg60=0.00 avg300=0.00 total=0
func parsePressure(data []byte) (memory.Pressure, error) {
	var p memory.Pressure
	seen := 0
	for len(data) > 0 {
		var line []byte
		line, data, _ = bytes.Cut(data, []byte{'\n'})
		_, text, _ := bytes.Cut(line, []byte(" total="))
		value, ok := number(text)
		if !ok {
			return p, fmt.Errorf("line %q: want total=", string(line))
		}
		switch kind, _, _ := bytes.Cut(line, []byte{' '}); string(kind) {
		case "some":
			p.Some = usec(value)
			seen |= 1
		case "full":
			p.Full = usec(value)
			seen |= 2
		}
	}
	if seen != 3 {
		return p, errors.New("want a line some and a line full")
	}
	return p, nil
}
