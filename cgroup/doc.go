// Package cgroup owns the kernel's side: finding the kubepods tree and its
// driver, the names of its cgroups, whose a cgroup is, and reading, writing and
// watching the memory.* files. It decides nothing about values.
//
// Every write, and every read that a write follows from, goes through a Tree, which
// holds kubepods open and resolves each path beneath it with openat2(2): no path,
// symbolic link or mount inside it leads out. Bundles are read beneath the
// runtime's directory in the same way. Discovery and the statistics that inspect
// shows are read by path.
package cgroup
