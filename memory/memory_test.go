package memory

import (
	"encoding/json"
	"math"
	"testing"

	"pgregory.net/rapid"
)

func TestBytes(t *testing.T) {
	for _, tc := range []struct {
		n, page int64
		want    string
	}{
		{0, 4096, "0"},
		{-1, 4096, "0"},
		{1, 4096, "0"},
		{4095, 4096, "0"},
		{4096, 4096, "4096"},
		{134217729, 4096, "134217728"},
		{65537, 65536, "65536"},
		{math.MaxInt64, 4096, "max"},
		{math.MaxInt64 / 4096 * 4096, 4096, "max"},
		{math.MaxInt64/4096*4096 - 1, 4096, "9223372036854767616"},
	} {
		if got := Bytes(tc.n, tc.page).String(); got != tc.want {
			t.Errorf("Bytes(%d, %d) = %s, want %s", tc.n, tc.page, got, tc.want)
		}
	}
}

func TestParse(t *testing.T) {
	for _, s := range []string{"0", "4096", "max", "9223372036854771712"} {
		v, err := Parse(s)
		if err != nil {
			t.Errorf("Parse(%q): %v", s, err)
		} else if v.String() != s {
			t.Errorf("Parse(%q).String() = %q", s, v)
		}
	}
	for _, s := range []string{"", "-1", "+1", "010", "1K", "1e9", "MAX", " 1", "1\n", "9223372036854775808"} {
		if v, err := Parse(s); err == nil {
			t.Errorf("Parse(%q) = %v, want an error", s, v)
		}
	}
}

func TestHuman(t *testing.T) {
	for v, want := range map[Value]string{
		0: "0", 1: "1", 4096: "4Ki", 64 << 20: "64Mi", 3 << 30: "3Gi", 127504384: "124516Ki", 127504385: "127504385", Unlimited: "max",
	} {
		if got := v.Human(); got != want {
			t.Errorf("Value(%d).Human() = %q, want %q", v, got, want)
		}
	}
}

func TestValuesJSON(t *testing.T) {
	got, err := json.Marshal(Values{High: Unlimited, Min: 4096})
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"memory.high":"max","memory.min":"4096"}`; string(got) != want {
		t.Errorf("got %s, want %s", got, want)
	}
	var back Values
	if err := json.Unmarshal(got, &back); err != nil {
		t.Fatal(err)
	}
	if back.String() != "memory.min=4096 memory.high=max" {
		t.Errorf("round trip gave %s", back)
	}
}

// What Bytes returns is what the kernel would print, so writing it again
// changes nothing.
func TestBytesIsStable(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		page := rapid.SampledFrom([]int64{4096, 16384, 65536}).Draw(t, "page")
		n := rapid.Int64().Draw(t, "n")
		v := Bytes(n, page)
		if v != Unlimited && (int64(v)%page != 0 || v < 0 || int64(v) > max(n, 0)) {
			t.Fatalf("Bytes(%d, %d) = %d", n, page, v)
		}
		if again := Bytes(int64(v), page); again != v {
			t.Fatalf("Bytes(%d) = %d, and again %d", n, v, again)
		}
	})
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"0", "max", "4096", "-1", "00", "1K"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		v, err := Parse(s)
		if err == nil && v.String() != s {
			t.Fatalf("Parse(%q) = %v: accepted something that the kernel does not print", s, v)
		}
	})
}
