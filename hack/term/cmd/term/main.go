// Term draws what a terminal shows: for each FILE.txt it writes FILE.svg.
package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/memqos/memqos/hack/term"
)

func main() {
	for _, file := range os.Args[1:] {
		data, err := os.ReadFile(file)
		if err == nil {
			err = os.WriteFile(strings.TrimSuffix(file, ".txt")+".svg", []byte(term.SVG(string(data))), 0o644)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "term:", err)
			os.Exit(1)
		}
	}
}
