package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/memqos/memqos/plugin"
)

// docs/commands.md is what the commands say of themselves.
func TestCommandsPage(t *testing.T) {
	var b strings.Builder
	b.WriteString("# Commands\n\nMade of the commands' own help by `make update`.\n\n" +
		"Completion for a shell: `memqos completion bash` (or fish, powershell, zsh) and, for the plugin,\n" +
		"`kubectl-memqos completion bash`; `--help` says where each is to be put.\n")
	describe(&b, newCommand(), false)
	describe(&b, plugin.New("kubectl-memqos", "devel"), true)
	file := filepath.Join("..", "..", "docs", "commands.md")
	if *update {
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), b.String()); diff != "" {
		t.Errorf("docs/commands.md is stale, `make update` rewrites it (-want +got):\n%s", diff)
	}
}

// describe adds a command and those beneath it. The plugin is there once, under the
// name by which people call it.
func describe(b *strings.Builder, cmd *cobra.Command, isPlugin bool) {
	if !isPlugin && cmd.Name() == "kubectl" {
		return
	}
	path := cmd.CommandPath()
	if isPlugin {
		path = strings.Replace(path, "kubectl-memqos", "kubectl memqos", 1)
	}
	long := cmd.Long
	if long == "" {
		long = cmd.Short + "."
	}
	fmt.Fprintf(b, "\n## %s\n\n```\n%s\n", path, long)
	if cmd.Example != "" {
		fmt.Fprintf(b, "\nExamples:\n%s\n", cmd.Example)
	}
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	for _, set := range []*pflag.FlagSet{cmd.LocalNonPersistentFlags(), cmd.PersistentFlags()} {
		set.VisitAll(func(f *pflag.Flag) {
			if f.Name != "help" && f.Name != "version" {
				flags.AddFlag(f)
			}
		})
	}
	if usage := flags.FlagUsages(); usage != "" {
		fmt.Fprintf(b, "\nFlags:\n%s", strings.ReplaceAll(usage, os.Getenv("HOME"), "$HOME"))
	}
	b.WriteString("```\n")
	for _, child := range cmd.Commands() {
		if child.Name() != "completion" && child.Name() != "help" && !child.Hidden {
			describe(b, child, isPlugin)
		}
	}
}

// The scripts that the shells load are there, and a shell takes that of bash.
func TestCompletion(t *testing.T) {
	for _, shell := range []string{"bash", "fish", "powershell", "zsh"} {
		stdout, stderr, err := run(t, "", "completion", shell)
		if err != nil || stderr != "" || len(stdout) < 1000 {
			t.Errorf("%s: %v, %q, %d bytes", shell, err, stderr, len(stdout))
		}
		if shell != "bash" {
			continue
		}
		check := exec.Command("bash", "-n")
		check.Stdin = strings.NewReader(stdout)
		if out, err := check.CombinedOutput(); err != nil {
			t.Errorf("bash: %v\n%s", err, out)
		}
	}
	for _, args := range [][]string{{"__complete", "pl"}, {"__complete", "plan", "--output", ""}} {
		stdout, _, err := run(t, "", args...)
		want := map[string]string{"pl": "plan\t", "": "json\n"}[args[len(args)-1]]
		if err != nil || !strings.Contains(stdout, want) {
			t.Errorf("%q: %v, %q; want %q", args, err, stdout, want)
		}
	}
}

// On a machine of one processor the agent has two of the runtime's, unless it is told.
func TestKeepListening(t *testing.T) {
	before := runtime.GOMAXPROCS(1)
	defer runtime.GOMAXPROCS(before)
	t.Setenv("GOMAXPROCS", "1")
	keepListening()
	if got := runtime.GOMAXPROCS(0); got != 1 {
		t.Errorf("GOMAXPROCS=1 is not heeded: %d", got)
	}
	t.Setenv("GOMAXPROCS", "")
	for _, tt := range []struct{ has, want int }{{1, 2}, {2, 2}, {3, 3}} {
		runtime.GOMAXPROCS(tt.has)
		keepListening()
		if got := runtime.GOMAXPROCS(0); got != tt.want {
			t.Errorf("of %d it makes %d, want %d", tt.has, got, tt.want)
		}
	}
}
