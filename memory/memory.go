// Package memory owns the vocabulary that every other package shares: the
// cgroup v2 memory interface files that MemoryQoS sets, and the value that one
// of them holds.
//
// The files and their rules are those of the kernel's
// Documentation/admin-guide/cgroup-v2.rst, "Memory Interface Files".
package memory

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// File names a cgroup v2 memory interface file.
type File string

// The files that MemoryQoS sets.
const (
	Min  File = "memory.min"  // hard protection: never reclaimed below it
	Low  File = "memory.low"  // best-effort protection
	High File = "memory.high" // above it: reclaim and throttling, never an OOM kill
	Max  File = "memory.max"  // above it: reclaim, then an OOM kill
)

// Files lists the files in the order in which they are shown and compared.
var Files = []File{Min, Low, High, Max}

// Value is the content of a File: a number of bytes, or Unlimited.
type Value int64

// Unlimited is the value that the kernel shows as "max".
const Unlimited Value = math.MaxInt64

// Bytes returns the value that the kernel keeps when n bytes are written:
// n floored to a page, and "max" from the largest number of pages that a page
// counter holds (mm/page_counter.c: LONG_MAX / PAGE_SIZE). A negative n, which
// no kernel accepts, is 0.
func Bytes(n, pageSize int64) Value {
	switch {
	case n <= 0:
		return 0
	case n/pageSize >= math.MaxInt64/pageSize:
		return Unlimited
	}
	return Value(n / pageSize * pageSize)
}

// Parse reads a value as the kernel prints one: decimal bytes or "max".
// It is as strict as the kernel's output is regular: no sign, no unit, no
// leading zero (octal to the kernel's own parser).
func Parse(s string) (Value, error) {
	if s == "max" {
		return Unlimited, nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || s[0] == '+' || s[0] == '-' || (s[0] == '0' && len(s) > 1) {
		return 0, fmt.Errorf("invalid memory value %q: want decimal bytes or %q", s, "max")
	}
	return Value(n), nil
}

// String returns the value as the kernel prints it: decimal bytes or "max".
func (v Value) String() string {
	if v == Unlimited {
		return "max"
	}
	return strconv.FormatInt(int64(v), 10)
}

// MarshalText implements encoding.TextMarshaler with the kernel's form.
func (v Value) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler with the kernel's form.
func (v *Value) UnmarshalText(text []byte) (err error) {
	*v, err = Parse(string(text))
	return err
}

// Human returns the value for people: whole binary units where they divide the
// value ("64Mi"), else bytes.
func (v Value) Human() string {
	if v == Unlimited || v == 0 {
		return v.String()
	}
	for i, unit := range []string{"Ti", "Gi", "Mi", "Ki"} {
		if size := Value(1) << (40 - 10*i); v%size == 0 {
			return strconv.FormatInt(int64(v/size), 10) + unit
		}
	}
	return v.String()
}

// Values holds the values of some of a cgroup's files. A File that is absent is
// one that nobody asks for, not one that is 0.
type Values map[File]Value

// String lists the values in the order of Files: "memory.min=0 memory.high=max".
func (vs Values) String() string {
	var b strings.Builder
	for _, f := range Files {
		if v, ok := vs[f]; ok {
			if b.Len() > 0 {
				b.WriteByte(' ')
			}
			fmt.Fprintf(&b, "%s=%s", f, v)
		}
	}
	return b.String()
}
