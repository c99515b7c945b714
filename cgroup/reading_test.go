package cgroup

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/memqos/memqos/config"
	"github.com/memqos/memqos/memory"
)

// Abridged from Linux 6.12.
const (
	eventsFile   = "low 1\nhigh 1502\nmax 3\noom 2\noom_kill 4\noom_group_kill 5\nsock_throttled 0\n"
	pressureFile = "some avg10=66.21 avg60=38.07 avg300=10.91 total=28001234\nfull avg10=64.00 avg60=36.90 avg300=10.58 total=27112345\n"
	statFile     = "anon 175112192\nfile 65536\nkernel 729088\nworkingset_refault_anon 3\nworkingset_refault_file 4\npgscan 2\npgsteal 1\npgscan_kswapd 9\npgfault 43012\npgmajfault 17\npgrefill 8\n"
	cgroupFile   = "populated 1\nfrozen 1\n"
	cpuFile      = "usage_usec 2500000\nuser_usec 1\nsystem_usec 2\nnr_periods 0\n"
)

func readingFixture(tb testing.TB) (*Dir, string) {
	tb.Helper()
	mount := tb.TempDir()
	dir := filepath.Join(mount, "kubepods")
	if err := os.Mkdir(dir, 0o755); err != nil {
		tb.Fatal(err)
	}
	for name, content := range map[string]string{
		"memory.current": "176160768\n", "memory.high": "157286400\n", "memory.events": "low 2\nhigh 1600\nmax 3\noom 2\noom_kill 4\noom_group_kill 5\n",
		"memory.events.local": eventsFile, "memory.pressure": pressureFile, "memory.stat": statFile, "cgroup.events": cgroupFile, "cpu.stat": cpuFile,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			tb.Fatal(err)
		}
	}
	tree, err := OpenFixture(mount, NewLayout(config.Cgroupfs, "/"))
	if err != nil {
		tb.Fatal(err)
	}
	d, err := tree.Open("kubepods")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(d.Close)
	return d, dir
}

func TestReading(t *testing.T) {
	d, dir := readingFixture(t)
	want := memory.Reading{
		Usage: 176160768, High: 157286400, HighEvent: 1502, Frozen: true,
		Pressure: &memory.Pressure{Some: 28001234 * time.Microsecond, Full: 27112345 * time.Microsecond},
		Anon:     175112192, File: 65536, Scanned: 2, Stolen: 1, Faults: 43012, MajorFaults: 17, Refaults: 7,
		CPU: 2500 * time.Millisecond,
	}
	check := func(want memory.Reading) {
		t.Helper()
		got, err := d.Reading()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(memory.Reading{}, "At")); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
		if got.At <= 0 {
			t.Errorf("At is %v, want a time since boot", got.At)
		}
	}
	check(want)
	if err := os.Remove(filepath.Join(dir, "memory.pressure")); err != nil {
		t.Fatal(err)
	}
	want.Pressure = nil
	check(want)
}

func TestReadingFails(t *testing.T) {
	for _, file := range []string{"memory.current", "memory.high", "memory.events.local", "memory.stat", "cgroup.events", "cpu.stat"} {
		d, dir := readingFixture(t)
		name := filepath.Join(dir, file)
		if err := os.WriteFile(name, []byte("many\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := d.Reading(); !namesFile(err, name) {
			t.Errorf("%s malformed: %v, want an error that names it", file, err)
		}
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
		if _, err := d.Reading(); !IsGone(err) {
			t.Errorf("no %s: %v, want one that is gone", file, err)
		}
	}
	d, dir := readingFixture(t)
	name := filepath.Join(dir, "memory.stat")
	if err := os.WriteFile(name, make([]byte, statSize), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Reading(); !namesFile(err, name) {
		t.Errorf("memory.stat too long: %v, want an error that names it", err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if p, err := d.Pressure(); !IsGone(err) {
		t.Errorf("Pressure of a cgroup that is gone: %v, %v", p, err)
	}
}

func namesFile(err error, name string) bool {
	pathErr, ok := err.(*os.PathError) //nolint:errorlint // the outermost error is what is tested
	return ok && pathErr.Path == name
}

func TestEvents(t *testing.T) {
	d, _ := readingFixture(t)
	total, local, err := d.Events()
	if err != nil {
		t.Fatal(err)
	}
	want := memory.Events{Low: 1, High: 1502, Max: 3, OOM: 2, OOMKill: 4, OOMGroupKill: 5}
	if diff := cmp.Diff(want, local); diff != "" {
		t.Errorf("local: -want +got:\n%s", diff)
	}
	want.Low, want.High = 2, 1600
	if diff := cmp.Diff(want, total); diff != "" {
		t.Errorf("total: -want +got:\n%s", diff)
	}
}

func TestParseMalformed(t *testing.T) {
	for _, s := range []string{"high", "high ", " 1", "high -1", "high 1 ", "high 1 2", "high\t1", "\n", "high 18446744073709551616", "high 0x1"} {
		if e, err := parseEvents([]byte(s)); err == nil {
			t.Errorf("parseEvents(%q) = %+v, want an error", s, e)
		}
	}
	for _, s := range []string{"", "some total=1\n", "full avg10=0.00 total=1\n", "some avg10=0.00\nfull avg10=0.00\n", "some total=-1\nfull total=0\n", "some total=1 x\nfull total=0\n"} {
		if p, err := parsePressure([]byte(s)); err == nil {
			t.Errorf("parsePressure(%q) = %+v, want an error", s, p)
		}
	}
	if e, err := parseEvents([]byte("high 18446744073709551615")); err != nil || e.High != 1<<64-1 {
		t.Errorf("got %+v, %v", e, err)
	}
}

func FuzzParseReading(f *testing.F) {
	for _, s := range []string{eventsFile, pressureFile, statFile, cgroupFile, cpuFile, "", "some total=\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var r memory.Reading
		_, errEvents := parseEvents(data)
		if err := parseReading(data, &r); (err == nil) != (errEvents == nil) {
			t.Errorf("reading: %v, events: %v: flat-keyed to one and not to the other", err, errEvents)
		}
		p, err := parsePressure(data)
		if err == nil && (p.Some < 0 || p.Full < 0) || r.CPU < 0 || r.Anon < 0 || r.File < 0 {
			t.Errorf("negative: %+v, %+v", p, r)
		}
	})
}

func BenchmarkReading(b *testing.B) {
	d, _ := readingFixture(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := d.Reading(); err != nil {
			b.Fatal(err)
		}
	}
}
