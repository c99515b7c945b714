package reference

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// What the agent says to people, docs/operations.md explains.
func TestOperationsPage(t *testing.T) {
	page, err := os.ReadFile(filepath.Join(root, "docs", "operations.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, said := range []struct {
		what string
		in   []string
		is   *regexp.Regexp
		as   string // in the page, with the word for %
	}{
		{"event", []string{"controllers", "guard"}, regexp.MustCompile(`"(Memory(?:QoS|Limit|Throttle)[A-Z][A-Za-z]+)"`), "\n| `%` |"},
		{"event", []string{"oom"}, regexp.MustCompile(`\bCause += "(\w+)"`), "`OutOfMemory%`"},
		{"reason to idle", []string{"controllers", "cgroup"}, regexp.MustCompile(`\b[rR]eason[A-Z]\w+ += "(\w+)"`), "`%`"},
	} {
		found := map[string]bool{}
		for _, folder := range said.in {
			files, err := filepath.Glob(filepath.Join(root, folder, "*.go"))
			if err != nil {
				t.Fatal(err)
			}
			for _, file := range files {
				if strings.HasSuffix(file, "_test.go") {
					continue
				}
				source, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				for _, m := range said.is.FindAllSubmatch(source, -1) {
					found[string(m[1])] = true
				}
			}
		}
		if len(found) < 5 {
			t.Errorf("%s: found %v only", said.what, found)
		}
		for word := range found {
			if !strings.Contains(string(page), strings.ReplaceAll(said.as, "%", word)) {
				t.Errorf("docs/operations.md has no %s %s", said.what, word)
			}
		}
	}
}

// What a release is built with is one Go, whoever builds it.
func TestOneGo(t *testing.T) {
	read := func(file string) string {
		data, err := os.ReadFile(filepath.Join(root, file))
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	m := regexp.MustCompile(`golang:([0-9.]+)-`).FindStringSubmatch(read("Dockerfile"))
	if m == nil {
		t.Fatal("the Dockerfile names no Go")
	}
	for _, file := range []string{".github/workflows/ci.yaml", ".github/workflows/release.yaml"} {
		text := read(file)
		if setups, with := strings.Count(text, "actions/setup-go@"), strings.Count(text, "go-version: "+m[1]); setups == 0 || setups != with {
			t.Errorf("%s: %d of %d jobs have Go %s, the Dockerfile's", file, with, setups, m[1])
		}
	}
}
