//go:build e2e

package footprint

import (
	"crypto/tls"
	"fmt"
	"html"
	"math"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/memqos/memqos/hack/browser"
	"github.com/memqos/memqos/hack/plot"
)

// unverified asks those who sign their own certificate.
var unverified = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}

// draw draws the data of the dashboards, panel by panel where Grafana would have
// them, as DIR/UID.png. It is not Grafana.
func draw(t *testing.T, p *prometheus, dashboards []dashboard, vars *strings.Replacer, began time.Time, dir string) {
	t.Helper()
	const column, row = 50, 34 // pixels
	pages, heights := map[string]string{}, map[string]int{}
	for _, d := range dashboards {
		bottom := 0
		var b strings.Builder
		fmt.Fprintf(&b, `<!doctype html><meta charset="utf-8"><style>
body { margin: 0; font: 13px sans-serif; background: #f4f5f5 }
section { position: absolute; box-sizing: border-box; border: 1px solid #ddd; background: #fff; overflow: hidden }
h1 { margin: 10px; font-size: 18px } h2 { margin: 6px 8px; font-size: 13px; font-weight: 600 }
b { display: block; text-align: center; font-size: 34px; font-weight: 500; margin-top: 14px }
table { margin: 0 8px; border-collapse: collapse } td { padding: 2px 14px 2px 0 }
</style><h1>%s</h1>`, html.EscapeString(d.Title))
		for _, panel := range d.Panels {
			g := panel.GridPos
			bottom = max(bottom, g.Y+g.H)
			fmt.Fprintf(&b, `<section style="left:%dpx;top:%dpx;width:%dpx;height:%dpx"><h2>%s</h2>`,
				g.X*column, 44+g.Y*row, g.W*column-6, g.H*row-6, html.EscapeString(panel.Title))
			unit := panel.FieldConfig.Defaults.Unit
			switch panel.Type {
			case "timeseries":
				c := &plot.Chart{Width: g.W*column - 8, Height: g.H*row - 34}
				for _, target := range panel.Targets {
					p.lines(t, c, vars.Replace(target.Expr), target.LegendFormat, unit, began)
				}
				b.WriteString(c.SVG())
			case "stat":
				for _, s := range p.query(t, vars.Replace(panel.Targets[0].Expr)) {
					fmt.Fprintf(&b, "<b>%s</b>", amount(s.value, unit))
				}
			case "table":
				b.WriteString("<table>")
				for _, s := range p.query(t, vars.Replace(panel.Targets[0].Expr)) {
					var names []string
					for name := range s.labels {
						if name != "__name__" && name != "instance" && name != "job" {
							names = append(names, name)
						}
					}
					slices.Sort(names)
					b.WriteString("<tr>")
					for _, name := range names {
						fmt.Fprintf(&b, "<td>%s", html.EscapeString(s.labels[name]))
					}
					fmt.Fprintf(&b, "<td>%s", amount(s.value, unit))
				}
				b.WriteString("</table>")
			default:
				t.Errorf("%s: a panel of type %s is not drawn", d.Title, panel.Type)
			}
			b.WriteString("</section>")
		}
		pages[d.UID], heights[d.UID] = write(t, t.TempDir(), d.UID+".html", b.String()), 50+bottom*row
	}
	ctx, stop, err := browser.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	for name, page := range pages {
		var png []byte
		err := chromedp.Run(ctx, chromedp.EmulateViewport(24*column, int64(heights[name])), chromedp.Navigate("file://"+page), chromedp.CaptureScreenshot(&png))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name+".png"), png, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

var legend = regexp.MustCompile(`\{\{(\w+)\}\}`)

// lines adds the lines of a query.
func (p *prometheus) lines(t *testing.T, c *plot.Chart, query, format, unit string, began time.Time) {
	t.Helper()
	var data struct {
		Result []struct {
			Metric map[string]string
			Values [][2]any
		}
	}
	p.ask(t, "query_range", url.Values{
		"query": {query}, "step": {"1"},
		"start": {strconv.FormatInt(began.Unix(), 10)}, "end": {strconv.FormatInt(time.Now().Unix(), 10)},
	}, &data)
	c.X = "s"
	by := 1.0
	if unit == "bytes" {
		by, c.Y = 1<<20, "MiB"
	} else if unit != "" {
		c.Y = map[string]string{"ops": "a second", "s": "seconds", "percentunit": "share"}[unit]
	}
	for _, r := range data.Result {
		name := legend.ReplaceAllStringFunc(format, func(s string) string { return r.Metric[s[2:len(s)-2]] })
		for _, v := range r.Values {
			at, y := v[0].(float64), value(t, v[1])
			if !math.IsNaN(y) && !math.IsInf(y, 0) {
				c.Add(name, plot.Point{X: at - float64(began.Unix()), Y: y / by})
			}
		}
	}
}

func amount(v float64, unit string) string {
	switch unit {
	case "bytes":
		return fmt.Sprintf("%.1f GiB", v/(1<<30))
	case "s":
		return fmt.Sprintf("%.3g s", v)
	case "percentunit":
		return fmt.Sprintf("%.0f %%", 100*v)
	}
	return strconv.FormatFloat(v, 'g', 4, 64)
}
