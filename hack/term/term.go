// Package term draws what a terminal shows as a picture.
package term

import (
	"encoding/xml"
	"fmt"
	"regexp"
	"strings"
	"unicode/utf8"
)

// In pixels: a character, a line, and the border. The font is said to be of this width
// by textLength, so that whatever font is there fits.
const (
	charWidth, lineHeight, border = 8, 18, 14
	foreground, background        = "#e6edf3", "#0d1117"
)

// colours are those of SGR 30 to 37.
var colours = [...]string{"#6e7681", "#ff7b72", "#3fb950", "#d29922", "#58a6ff", "#bc8cff", "#39c5cf", foreground}

// sequence is one of SGR's. Others are not drawn.
var sequence = regexp.MustCompile(`\x1b\[([0-9;]*)([A-Za-z])`)

// SVG draws text, in which SGR sequences may set colours of the foreground. Lines that
// begin with "$ " are what somebody has typed.
func SVG(text string) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	columns := 0
	for _, line := range lines {
		columns = max(columns, utf8.RuneCountInString(sequence.ReplaceAllString(line, "")))
	}
	width, height := 2*border+columns*charWidth, 2*border+len(lines)*lineHeight
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" font-family="DejaVu Sans Mono, Menlo, Consolas, monospace" font-size="13">`+"\n", width, height, width, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" rx="8" fill="%s"/>`+"\n", width, height, background)
	colour := foreground
	for i, line := range lines {
		column := 0
		put := func(s string) {
			if n := utf8.RuneCountInString(s); strings.TrimSpace(s) != "" {
				weight := ""
				if strings.HasPrefix(line, "$ ") {
					weight = ` font-weight="bold"`
				}
				fmt.Fprintf(&b, `<text xml:space="preserve" x="%d" y="%d" textLength="%d" fill="%s"%s>%s</text>`+"\n",
					border+column*charWidth, border+i*lineHeight+13, n*charWidth, colour, weight, escape(s))
			}
			column += utf8.RuneCountInString(s)
		}
		at := 0
		for _, m := range sequence.FindAllStringSubmatchIndex(line, -1) {
			put(line[at:m[0]])
			at = m[1]
			if line[m[4]:m[5]] == "m" {
				colour = foreground
				for _, code := range strings.Split(line[m[2]:m[3]], ";") {
					if len(code) == 2 && code[0] == '3' && code[1] <= '7' {
						colour = colours[code[1]-'0']
					}
				}
			}
		}
		put(line[at:])
	}
	b.WriteString("</svg>\n")
	return b.String()
}

func escape(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s)) // a Builder does not fail
	return b.String()
}
