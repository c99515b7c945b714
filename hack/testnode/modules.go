package testnode

import (
	"path"
	"slices"
	"strings"
)

// bootModules are what it takes to find the disks and the network. A kernel may
// have some of them built in.
var bootModules = []string{"virtio_pci", "virtio_blk", "virtio_net", "ext4"}

// moduleLoadOrder resolves wanted modules to file paths, dependencies first,
// from the contents of modules.dep ("path: dependency dependency").
func moduleLoadOrder(modulesDep string, wanted []string) []string {
	paths, dependencies := make(map[string]string), make(map[string][]string)
	for line := range strings.Lines(modulesDep) {
		file, needs, ok := strings.Cut(strings.TrimSpace(line), ":")
		if !ok {
			continue
		}
		paths[moduleName(file)] = file
		dependencies[file] = strings.Fields(needs)
	}
	var order []string
	var add func(file string)
	add = func(file string) {
		if slices.Contains(order, file) {
			return
		}
		for _, needed := range dependencies[file] {
			add(needed)
		}
		order = append(order, file)
	}
	for _, name := range wanted {
		if file, ok := paths[name]; ok {
			add(file)
		}
	}
	return order
}

// moduleName turns "kernel/a/virtio-rng.ko.xz" into "virtio_rng".
func moduleName(file string) string {
	name, _, _ := strings.Cut(path.Base(file), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}
