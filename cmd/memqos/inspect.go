package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/memqos/memqos/cgroup"
	"github.com/memqos/memqos/controllers"
	"github.com/memqos/memqos/memory"
	"github.com/memqos/memqos/qos"
	"github.com/memqos/memqos/status"
)

func newInspectCommand() *cobra.Command {
	var flags nodeFlags
	var format output
	cmd := &cobra.Command{
		Use:   "inspect",
		Short: "Show on a node what is wanted of each cgroup and what the kernel holds",
		Long: `inspect asks the agent that runs on this node. Where none answers it says so, reads
the node's pods from the API server and its files from the kernel, and compares
them itself; who wrote what and since when is then not known. It changes nothing.

Verdicts: Fulfilled (every managed file holds what is wanted), Drifted (some file
holds another value), Relaxed (the stall guard has raised memory.high), Pending (no
cgroup yet, or a limit waits for usage to fall), Unknown (neither the pod's status
nor an OCI bundle says whose it is; it is left alone).`,
		Example: `  memqos inspect
  memqos inspect -o json | jq '.cgroups[] | select(.verdict == "Drifted")'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := flags.load()
			if err != nil {
				return err
			}
			ctx := cmd.Context()
			if ctx == nil {
				ctx = context.Background()
			}
			show := func(s *status.NodeStatus) error {
				return format.print(cmd.OutOrStdout(), s, func() table { return inspectTable(s) })
			}
			s, err := controllers.Ask(ctx, c.StateDir)
			switch {
			case err == nil && s.Node == flags.nodeName && s.Agent != nil && s.Agent.Idle == "":
				return show(s)
			case err == nil && s.Agent != nil && s.Agent.Idle != "":
				err = fmt.Errorf("the agent is idle: %s: %s", s.Agent.Idle, s.Agent.IdleMessage)
			case err == nil:
				err = fmt.Errorf("the agent in %s is that of node %q", c.StateDir, s.Node)
			}
			if _, err := fmt.Fprintf(cmd.ErrOrStderr(), "note: read without the agent: %s\n", status.Printable(err.Error())); err != nil {
				return err
			}
			// What client libraries log is no part of the answer.
			ctrl.SetLogger(newLogger(io.Discard, c.Logging))
			api, err := flags.api()
			if err != nil {
				return err
			}
			o := flags.options(c)
			if o.Boot, err = cgroup.BootID(); err != nil {
				return err
			}
			if s, err = controllers.Inspect(ctx, api, o); err != nil {
				return err
			}
			return show(s)
		},
	}
	flags.add(cmd)
	format.add(cmd)
	return cmd
}

func inspectTable(in *status.NodeStatus) table {
	low := slices.ContainsFunc(in.Cgroups, func(o status.Cgroup) bool {
		return has(o.Wanted, memory.Low) || o.Actual[memory.Low] > 0
	})
	files := columns(low)
	head := []string{"LEVEL", "QOS", "POD", "CONTAINER"}
	for _, group := range []string{"WANT ", "HAS "} {
		for i, file := range files {
			name := strings.ToUpper(strings.TrimPrefix(string(file), "memory."))
			if i == 0 {
				name = group + name
			}
			head = append(head, name)
		}
	}
	t := table{append(head, "USAGE", "VERDICT")}
	for i := range in.Cgroups {
		o := &in.Cgroups[i]
		row := names(o.Level, string(o.QOSClass), o.Namespace, o.Pod, o.Container, o.Cgroup)
		row = append(append(row, cells(o.Wanted, files)...), cells(o.Actual, files)...)
		t = append(t, append(row, memory.Value(o.UsageBytes).Human(), string(o.Verdict)))
	}
	return t
}

// columns are the files that a table has columns for. memory.low is among them
// where there is one to show: releases before 1.36 have none.
func columns(low bool) []memory.File {
	if low {
		return memory.Files
	}
	return []memory.File{memory.Min, memory.High, memory.Max}
}

func has(vs memory.Values, file memory.File) bool {
	_, ok := vs[file]
	return ok
}

// cells shows the values of files.
func cells(vs memory.Values, files []memory.File) []string {
	var cells []string
	for _, file := range files {
		cell := "-"
		if v, ok := vs[file]; ok {
			cell = v.Human()
		}
		cells = append(cells, cell)
	}
	return cells
}

// names are the first columns of every table: whose cgroup it is.
func names(level qos.Level, class, namespace, pod, container, cgroup string) []string {
	if class == "" {
		class = "-"
	}
	who := "-"
	switch {
	case pod != "":
		who = namespace + "/" + pod
	case level == qos.LevelNode:
		who = "(kubepods)"
	case level == qos.LevelPod:
		who = "(" + cgroup[strings.LastIndexByte(cgroup, '/')+1:] + ")"
	}
	if container == "" {
		container = "-"
		if level == qos.LevelContainer && cgroup != "" {
			container = "(" + shortName(cgroup[strings.LastIndexByte(cgroup, '/')+1:]) + ")"
		}
	}
	return []string{string(level), class, who, container}
}

// shortName cuts the hexadecimal id in a cgroup's name to what tells it apart.
func shortName(name string) string {
	name = strings.TrimSuffix(name, ".scope")
	if i := strings.LastIndexByte(name, '-'); len(name)-i > 13 {
		return name[:i+13]
	}
	return name
}
