package plot

import (
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	c, err := Parse("# title: T\n# x: s\n# y: MiB\nseries,x,y\na, b,0,1.5\na, b,1,2\nc,0,0\n")
	if err != nil {
		t.Fatal(err)
	}
	if c.Title != "T" || c.X != "s" || c.Y != "MiB" || len(c.Lines["a, b"]) != 2 || c.Lines["a, b"][1] != (Point{1, 2}) || len(c.Names) != 2 {
		t.Errorf("got %+v", c)
	}
	for _, bad := range []string{"", "# title: T\n", "a,1\n", "a,x,1\n"} {
		if _, err := Parse(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

// A line goes from the first point to the last, within the picture, and a name cannot
// break it.
func TestSVG(t *testing.T) {
	c, err := Parse("# title: T\n# x: s\n# y: MiB\na<b,0,0\na<b,10,5\n")
	if err != nil {
		t.Fatal(err)
	}
	got := c.SVG()
	for _, want := range []string{`d="M70.0 350.0L560.0 40.0"`, ">a&lt;b</text>", ">MiB</text>"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %s in:\n%s", want, got)
		}
	}
}
