// Package plot draws line charts. A chart's file begins with "# title:", "# x:" and
// "# y:", then has a line a point: series, x, y.
package plot

import (
	"encoding/xml"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Point is one of a line.
type Point struct{ X, Y float64 }

// Chart is some lines over one axis.
type Chart struct {
	Title, X, Y   string   // X and Y name the axes
	Names         []string // of the lines, in the order in which they come
	Lines         map[string][]Point
	Width, Height int // of the picture, in pixels; 0: 760 and 400
}

// Add adds a point to a line.
func (c *Chart) Add(name string, p Point) {
	if c.Lines == nil {
		c.Lines = map[string][]Point{}
	}
	if c.Lines[name] == nil {
		c.Names = append(c.Names, name)
	}
	c.Lines[name] = append(c.Lines[name], p)
}

// Parse reads a chart's file.
func Parse(text string) (*Chart, error) {
	c := &Chart{}
	head := map[string]*string{"# title": &c.Title, "# x": &c.X, "# y": &c.Y}
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
		c.Add(name, Point{x, y})
	}
	if len(c.Names) == 0 {
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

// What is around the lines, in pixels.
const (
	left, top     = 70, 40
	right, bottom = 200, 50 // the legend is at the right
)

var colours = []string{"#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5", "#9c6b4e", "#9498a0"}

// SVG is the picture.
func (c *Chart) SVG() string {
	width, height := c.Width, c.Height
	if width == 0 {
		width, height = 760, 400
	}
	var maxX, maxY float64
	minX := math.Inf(1)
	for _, line := range c.Lines {
		for _, p := range line {
			minX, maxX, maxY = min(minX, p.X), max(maxX, p.X), max(maxY, p.Y)
		}
	}
	minX = min(minX, 0)
	stepX, stepY := step(maxX-minX), step(maxY)
	maxY = max(math.Ceil(maxY/stepY)*stepY, stepY)
	px := func(x float64) float64 { return left + (x-minX)/max(maxX-minX, 1e-9)*float64(width-left-right) }
	py := func(y float64) float64 { return float64(height-bottom) - y/maxY*float64(height-top-bottom) }
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+"\n", width, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="white"/>`+"\n", width, height)
	text := func(x, y float64, anchor, extra, s string) {
		fmt.Fprintf(&b, `<text x="%.1f" y="%.1f" text-anchor="%s"%s>%s</text>`+"\n", x, y, anchor, extra, escape(s))
	}
	text(left, 24, "start", ` font-size="15"`, c.Title)
	for y := 0.0; y <= maxY*1.0001; y += stepY {
		fmt.Fprintf(&b, `<path d="M%d %.1fH%d" stroke="#ddd"/>`+"\n", left, py(y), width-right)
		text(left-8, py(y)+4, "end", "", number(y))
	}
	for x := math.Ceil(minX/stepX) * stepX; x <= maxX*1.0001; x += stepX {
		text(px(x), float64(height-bottom+18), "middle", "", number(x))
	}
	text(float64(left+width-right)/2, float64(height-12), "middle", "", c.X)
	text(0, 0, "middle", fmt.Sprintf(` transform="translate(16 %d) rotate(-90)"`, height/2), c.Y)
	for i, name := range c.Names {
		colour := colours[i%len(colours)]
		var d strings.Builder
		for j, p := range c.Lines[name] {
			command := 'L'
			if j == 0 {
				command = 'M'
			}
			fmt.Fprintf(&d, "%c%.1f %.1f", command, px(p.X), py(p.Y))
		}
		fmt.Fprintf(&b, `<path d="%s" fill="none" stroke="%s" stroke-width="1.5"/>`+"\n", d.String(), colour)
		if line := c.Lines[name]; len(line) == 1 { // which is no line
			fmt.Fprintf(&b, `<circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>`+"\n", px(line[0].X), py(line[0].Y), colour)
		}
		y := float64(top + 16*i)
		fmt.Fprintf(&b, `<path d="M%d %.1fh16" stroke="%s" stroke-width="3"/>`+"\n", width-right+10, y, colour)
		text(float64(width-right+32), y+4, "start", "", name)
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
