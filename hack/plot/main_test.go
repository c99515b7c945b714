package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	c, err := parse("# title: T\n# x: s\n# y: MiB\nseries,x,y\na, b,0,1.5\na, b,1,2\nc,0,0\n")
	if err != nil {
		t.Fatal(err)
	}
	if c.title != "T" || c.x != "s" || c.y != "MiB" || len(c.lines["a, b"]) != 2 || c.lines["a, b"][1] != (point{1, 2}) || len(c.names) != 2 {
		t.Errorf("got %+v", c)
	}
	for _, bad := range []string{"", "# title: T\n", "a,1\n", "a,x,1\n"} {
		if _, err := parse(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

// The pictures of docs are what their data make.
func TestPictures(t *testing.T) {
	files, err := filepath.Glob("../../docs/safety/*.csv")
	if err != nil || len(files) == 0 {
		t.Fatalf("no data: %v", err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		c, err := parse(string(data))
		if err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		picture, err := os.ReadFile(strings.TrimSuffix(file, ".csv") + ".svg")
		if err != nil {
			t.Error(err)
		} else if string(picture) != c.svg() {
			t.Errorf("the picture of %s is not of its data: make plots", file)
		}
	}
}
