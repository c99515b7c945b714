// Plot draws line charts: for each FILE.csv it writes FILE.svg. The files begin with
// "# title:", "# x:" and "# y:", then have a line a point: series, x, y.
package main

import (
	"encoding/xml"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
)

func main() {
	for _, file := range os.Args[1:] {
		if err := plot(file); err != nil {
			fmt.Fprintln(os.Stderr, "plot:", err)
			os.Exit(1)
		}
	}
}

func plot(file string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	c, err := parse(string(data))
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return os.WriteFile(strings.TrimSuffix(file, ".csv")+".svg", []byte(c.svg()), 0o644)
}

type point struct{ x, y float64 }

type chart struct {
	title, x, y string
	names       []string // in the order in which they come
	lines       map[string][]point
}

func parse(text string) (*chart, error) {
	c := &chart{lines: map[string][]point{}}
	head := map[string]*string{"# title": &c.title, "# x": &c.x, "# y": &c.y}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if key, value, ok := strings.Cut(line, ": "); ok && head[key] != nil {
			*head[key] = value
			continue
		}
		if line == "" || line == "series,x,y" {
			continue
		}
		// The name may have commas.
		rest, last := cutLast(line)
		name, first := cutLast(rest)
		x, errX := strconv.ParseFloat(first, 64)
		y, errY := strconv.ParseFloat(last, 64)
		if errX != nil || errY != nil || name == "" {
			return nil, fmt.Errorf("%q: want series,x,y", line)
		}
		if c.lines[name] == nil {
			c.names = append(c.names, name)
		}
		c.lines[name] = append(c.lines[name], point{x, y})
	}
	if len(c.names) == 0 {
		return nil, fmt.Errorf("has no points")
	}
	return c, nil
}

func cutLast(s string) (before, after string) {
	i := strings.LastIndexByte(s, ',')
	if i < 0 {
		return "", s
	}
	return s[:i], s[i+1:]
}

// The picture, in pixels.
const (
	width, height = 760, 400
	left, top     = 70, 40
	right, bottom = 200, 50 // the legend is at the right
)

var colours = []string{"#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5", "#9c6b4e", "#9498a0"}

func (c *chart) svg() string {
	var maxX, maxY float64
	minX := math.Inf(1)
	for _, line := range c.lines {
		for _, p := range line {
			minX, maxX, maxY = min(minX, p.x), max(maxX, p.x), max(maxY, p.y)
		}
	}
	minX = min(minX, 0)
	stepX, stepY := step(maxX-minX), step(maxY)
	maxY = max(math.Ceil(maxY/stepY)*stepY, stepY)
	px := func(x float64) float64 { return left + (x-minX)/max(maxX-minX, 1e-9)*(width-left-right) }
	py := func(y float64) float64 { return height - bottom - y/maxY*(height-top-bottom) }
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+"\n", width, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="white"/>`+"\n", width, height)
	text := func(x, y float64, anchor, extra, s string) {
		fmt.Fprintf(&b, `<text x="%.1f" y="%.1f" text-anchor="%s"%s>%s</text>`+"\n", x, y, anchor, extra, escape(s))
	}
	text(left, 24, "start", ` font-size="15"`, c.title)
	for y := 0.0; y <= maxY*1.0001; y += stepY {
		fmt.Fprintf(&b, `<path d="M%d %.1fH%d" stroke="#ddd"/>`+"\n", left, py(y), width-right)
		text(left-8, py(y)+4, "end", "", number(y))
	}
	for x := math.Ceil(minX/stepX) * stepX; x <= maxX*1.0001; x += stepX {
		text(px(x), height-bottom+18, "middle", "", number(x))
	}
	text((left+width-right)/2, height-12, "middle", "", c.x)
	text(0, 0, "middle", fmt.Sprintf(` transform="translate(16 %d) rotate(-90)"`, height/2), c.y)
	for i, name := range c.names {
		colour := colours[i%len(colours)]
		var d strings.Builder
		for j, p := range c.lines[name] {
			command := 'L'
			if j == 0 {
				command = 'M'
			}
			fmt.Fprintf(&d, "%c%.1f %.1f", command, px(p.x), py(p.y))
		}
		fmt.Fprintf(&b, `<path d="%s" fill="none" stroke="%s" stroke-width="1.5"/>`+"\n", d.String(), colour)
		y := float64(top + 16*i)
		fmt.Fprintf(&b, `<path d="M%d %.1fh16" stroke="%s" stroke-width="3"/>`+"\n", width-right+10, y, colour)
		text(width-right+32, y+4, "start", "", name)
	}
	b.WriteString("</svg>\n")
	return b.String()
}

// step is a round distance between some five lines of a grid.
func step(span float64) float64 {
	if span <= 0 {
		return 1
	}
	magnitude := math.Pow(10, math.Floor(math.Log10(span/5)))
	for _, m := range []float64{1, 2, 5} {
		if span/(m*magnitude) <= 6 {
			return m * magnitude
		}
	}
	return 10 * magnitude
}

func number(v float64) string { return strconv.FormatFloat(math.Round(v*1000)/1000, 'f', -1, 64) }

func escape(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s)) // a Builder does not fail
	return b.String()
}
