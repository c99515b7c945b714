//go:build e2e

package e2e

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/memqos/memqos/hack/testnode"
	"github.com/memqos/memqos/test/conformance"
)

var (
	podDir       = regexp.MustCompile(`pod([0-9a-f_-]+)(\.slice)?$`)
	containerDir = regexp.MustCompile(`([0-9a-f]{64})(\.scope)?$`)
)

// takeSnapshot reads every cgroup of kubepods and names it from what the API
// server says of the pods. It knows the names of cgroups by itself, not from the
// product.
func takeSnapshot(t *testing.T, node *testnode.Node) conformance.Snapshot {
	t.Helper()
	pods := listPods(t, node)
	cgroups, err := node.Cgroups(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s := conformance.Snapshot{}
	for path, files := range cgroups {
		name := clusterName(path, node.Name(), pods)
		if _, twice := s[name]; twice {
			name = "unknown " + path // a container that the status does not name yet
		}
		s[name] = files
	}
	return s
}

func clusterName(path, node string, pods []corev1.Pod) string {
	base := path[strings.LastIndexByte(path, '/')+1:]
	if base == "container" { // crun's, within the scope
		return clusterName(strings.TrimSuffix(path, "/"+base), node, pods) + conformance.CrunSuffix
	}
	for _, name := range []string{"burstable", "besteffort", "kubepods"} {
		if strings.HasSuffix(strings.TrimSuffix(base, ".slice"), name) {
			return name
		}
	}
	if id, ok := strings.CutPrefix(base, "crio-conmon-"); ok { // CRI-O's monitor, a sibling of what it watches
		name := clusterName(path[:strings.LastIndexByte(path, '/')+1]+"crio-"+id, node, pods)
		return "conmon of " + name
	}
	container := ""
	if m := containerDir.FindStringSubmatch(base); m != nil {
		container = m[1]
		path = path[:strings.LastIndexByte(path, '/')]
	}
	m := podDir.FindStringSubmatch(path)
	if m == nil {
		return "unknown " + path
	}
	uid := strings.ReplaceAll(m[1], "_", "-")
	for i := range pods {
		pod := &pods[i]
		name := pod.Namespace + "/" + pod.Name
		own := string(pod.UID)
		if hash, static := pod.Annotations["kubernetes.io/config.hash"]; static {
			own, name = hash, strings.TrimSuffix(name, "-"+node)
		}
		if own != uid {
			continue
		}
		if container == "" {
			return "pod " + name
		}
		for _, status := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses, pod.Status.EphemeralContainerStatuses) {
			if strings.HasSuffix(status.ContainerID, "://"+container) {
				return "container " + name + "/" + status.Name
			}
		}
		return "sandbox " + name
	}
	return "unknown " + path
}

// differences compares two snapshots, file by file.
func differences(want, got conformance.Snapshot) []string {
	var diff []string
	names := maps.Clone(want)
	maps.Copy(names, got)
	for _, name := range slices.Sorted(maps.Keys(names)) {
		w, inWant := want[name]
		g, inGot := got[name]
		switch {
		case !inWant:
			diff = append(diff, name+": only the second node has it")
		case !inGot:
			diff = append(diff, name+": only the first node has it")
		}
		if !inWant || !inGot {
			continue
		}
		for _, file := range slices.Sorted(maps.Keys(w)) {
			if w[file] != g[file] {
				diff = append(diff, fmt.Sprintf("%s: %s is %s, want %s", name, file, g[file], w[file]))
			}
		}
	}
	return diff
}
