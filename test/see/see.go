package see

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
)

// Shown reads the values that the open page shows: by cgroup and file, what the
// cell's title says the file holds.
func Shown(ctx context.Context) (map[string]map[string]string, error) {
	var cells [][3]string
	err := chromedp.Run(ctx, chromedp.Evaluate(`[...document.querySelectorAll("table[data-cgroup] td[data-file]")].map(
		td => [td.closest("table").dataset.cgroup, td.dataset.file, td.title])`, &cells))
	out := map[string]map[string]string{}
	for _, c := range cells {
		if out[c[0]] == nil {
			out[c[0]] = map[string]string{}
		}
		out[c[0]][c[1]] = c[2]
	}
	return out, err
}

// Differences compares what is shown with what the files hold: cgroups that are
// shown must hold it, and each of want must be shown.
func Differences(want, shown map[string]map[string]string) (all []string) {
	for _, cgroup := range slices.Sorted(maps.Keys(want)) {
		for _, file := range []string{"memory.min", "memory.low", "memory.high", "memory.max"} {
			if got := shown[cgroup][file]; got != want[cgroup][file] {
				all = append(all, fmt.Sprintf("%s %s holds %s, the page shows %q", cgroup, file, want[cgroup][file], got))
			}
		}
	}
	return all
}

// Looks are the sizes and colour schemes that the page is looked at in.
var Looks = []struct {
	Name          string
	Width, Height int64
	Scheme        string
}{
	{"page", 1440, 1000, "light"},
	{"page-dark", 1440, 1000, "dark"},
	{"page-narrow", 375, 800, "light"},
	{"page-narrow-dark", 375, 800, "dark"},
}

// Look sets one of Looks.
func Look(i int) chromedp.Action {
	l := Looks[i]
	return chromedp.Tasks{
		chromedp.EmulateViewport(l.Width, l.Height),
		emulation.SetEmulatedMedia().WithFeatures([]*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: l.Scheme}}),
	}
}

// Overflow is by how many pixels the page is wider than the window.
func Overflow(ctx context.Context) (pixels int, err error) {
	err = chromedp.Run(ctx, chromedp.Evaluate(`document.documentElement.scrollWidth - document.documentElement.clientWidth`, &pixels))
	return pixels, err
}
