// Plot draws line charts: for each FILE.csv it writes FILE.svg.
package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/memqos/memqos/hack/plot"
)

func main() {
	for _, file := range os.Args[1:] {
		if err := draw(file); err != nil {
			fmt.Fprintln(os.Stderr, "plot:", err)
			os.Exit(1)
		}
	}
}

func draw(file string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	c, err := plot.Parse(string(data))
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return os.WriteFile(strings.TrimSuffix(file, ".csv")+".svg", []byte(c.SVG()), 0o644)
}
