package term

import (
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
)

func TestSVG(t *testing.T) {
	got := SVG("$ kubectl memqos top\nPOD   VERDICT\na<b   \x1b[31mDrifted\x1b[0m   x\n\x1b[2J\n")
	for _, want := range []string{
		`viewBox="0 0 188 100"`, // 20 columns, 4 lines
		`x="14" y="27" textLength="160" fill="#e6edf3" font-weight="bold">$ kubectl memqos top</text>`,
		`>a&lt;b   </text>`,
		`x="62" y="63" textLength="56" fill="#ff7b72">Drifted</text>`,
		`x="118" y="63" textLength="32" fill="#e6edf3">   x</text>`,
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %s in:\n%s", want, got)
		}
	}
	if strings.Contains(got, "\x1b") || strings.Contains(got, "2J") {
		t.Errorf("a sequence is drawn:\n%s", got)
	}
	for d := xml.NewDecoder(strings.NewReader(got)); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
}
