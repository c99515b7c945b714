package ledger

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/memqos/memqos/memory"
)

const (
	slice = "kubepods.slice/kubepods-burstable.slice"
	boot  = "3f1c8e0e-0000-4000-8000-000000000000"
)

var key = Key{42, memory.Min}

func open(t *testing.T, dir, boot string) *Ledger {
	t.Helper()
	l, err := Open(dir, boot)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func before(t *testing.T, l *Ledger, key Key, from, to memory.Value) {
	t.Helper()
	if err := l.Before(key, slice, from, to); err != nil {
		t.Fatal(err)
	}
}

func reopen(t *testing.T, l *Ledger, boot string) *Ledger {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return open(t, l.dir, boot)
}

func TestOriginalIsWhatSomebodyElseWrote(t *testing.T) {
	type step struct{ from, to memory.Value }
	for _, tt := range []struct {
		name  string
		steps []step
		want  Entry
	}{
		{"first write", []step{{0, 100}}, Entry{slice, 0, 100}},
		{"own value changed", []step{{0, 100}, {100, 200}}, Entry{slice, 0, 200}},
		{"zeroed by systemd, repaired", []step{{50, 100}, {0, 100}}, Entry{slice, 0, 100}},
		{"a kubelet's value", []step{{0, 100}, {70, 100}}, Entry{slice, 70, 100}},
		{"unlimited", []step{{memory.Unlimited, 100}}, Entry{slice, memory.Unlimited, 100}},
		// The line was written and the file was not: the next look finds what was there.
		{"killed before the write", []step{{30, 100}, {30, 100}}, Entry{slice, 30, 100}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := open(t, t.TempDir(), boot)
			if !l.Fresh() {
				t.Error("an empty directory is not fresh")
			}
			for _, s := range tt.steps {
				before(t, l, key, s.from, s.to)
			}
			l = reopen(t, l, boot)
			if l.Fresh() {
				t.Error("a ledger of this boot is fresh")
			}
			if diff := cmp.Diff(map[Key]Entry{key: tt.want}, l.All()); diff != "" {
				t.Errorf("after a restart (-want +got):\n%s", diff)
			}
		})
	}
}

func TestOtherBootIsDropped(t *testing.T) {
	l := open(t, t.TempDir(), boot)
	before(t, l, key, 0, 100)
	l = reopen(t, l, "another")
	if !l.Fresh() || len(l.All()) != 0 {
		t.Errorf("fresh %t with %d entries, want true and none", l.Fresh(), len(l.All()))
	}
}

// A kill may cut the last line, and a disk or a hand may spoil any.
func TestSpoiltLinesAreLeftOut(t *testing.T) {
	good := "42 memory.min 0 100 " + slice + "\n"
	for name, data := range map[string]string{
		"cut off":        good + "43 memory.min 0 1",
		"no inode":       good + "x memory.min 0 100 a\n",
		"octal":          good + "43 memory.min 010 100 a\n",
		"unknown file":   good + "43 memory.swap.max 0 100 a\n",
		"no cgroup":      good + "43 memory.min 0 100 \n",
		"an empty line":  good + "\n",
		"before another": "garbage\n" + good,
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, fileName), []byte(header+boot+"\n"+data), 0o600); err != nil {
				t.Fatal(err)
			}
			want := map[Key]Entry{key: {slice, 0, 100}}
			if diff := cmp.Diff(want, open(t, dir, boot).All()); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestOneProcessAtATime(t *testing.T) {
	l := open(t, t.TempDir(), boot)
	if _, err := Open(l.dir, boot); !errors.Is(err, ErrInUse) {
		t.Errorf("a second open gave %v, want %v", err, ErrInUse)
	}
	reopen(t, l, boot)
}

func TestForgetAndPrune(t *testing.T) {
	l := open(t, t.TempDir(), boot)
	other := Key{43, memory.High}
	before(t, l, key, 0, 100)
	before(t, l, other, 0, 100)
	if err := l.Prune(func(string, uint64) bool { return false }); err != nil {
		t.Fatal(err)
	}
	if got := len(l.All()); got != 2 {
		t.Errorf("pruned a short ledger: %d entries, want 2", got)
	}
	for range slack {
		before(t, l, other, 100, 100)
	}
	if err := l.Prune(func(_ string, inode uint64) bool { return inode == other.Inode }); err != nil {
		t.Fatal(err)
	}
	if _, ok := l.Get(key); ok {
		t.Error("the entry of a cgroup that is gone was kept")
	}
	l = reopen(t, l, boot)
	if diff := cmp.Diff(map[Key]Entry{other: {slice, 0, 100}}, l.All()); diff != "" {
		t.Errorf("after pruning (-want +got):\n%s", diff)
	}
	if err := l.Forget(other); err != nil {
		t.Fatal(err)
	}
	if got := reopen(t, l, boot).All(); len(got) != 0 {
		t.Errorf("after forgetting: %v", got)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(header + boot + "\n42 memory.min 0 100 " + slice + "\n"))
	f.Add([]byte(header + boot + "\n42 memory.high max 100 a b\n43"))
	f.Fuzz(func(t *testing.T, data []byte) {
		entries, ok := parse(data, boot)
		if !ok && len(entries) > 0 {
			t.Fatal("entries of a ledger that is none")
		}
		for key, e := range entries {
			gotKey, got, ok := parseLine(line(key, e)[:len(line(key, e))-1])
			if !ok || gotKey != key || got != e {
				t.Fatalf("%v %v does not survive: %v %v", key, e, gotKey, got)
			}
		}
	})
}
