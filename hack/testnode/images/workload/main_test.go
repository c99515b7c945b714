package main

import "testing"

func TestParseSize(t *testing.T) {
	for text, want := range map[string]int{"0": 0, "4097": 4097, "3Ki": 3072, "2Mi": 2 << 20, "1Gi": 1 << 30} {
		if got, err := parseSize(text); err != nil || got != want {
			t.Errorf("%s: %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "Mi", "-1", "1.5Gi", "1M", "99999999999"} {
		if got, err := parseSize(text); err == nil {
			t.Errorf("%q: accepted as %d", text, got)
		}
	}
}
