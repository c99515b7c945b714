package testnode

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// crioDir is where the guest mounts the disk with CRI-O's programs.
const crioDir = "/opt/crio"

const crioSocket = "unix:///run/crio/crio.sock"

// crioPackages are what the host needs to build CRI-O: without cgo it has no
// overlay driver, and 1.27 does not start.
var crioPackages = []string{"libseccomp-dev", "pkg-config"}

// crioFlags make a static binary that needs no further C libraries.
var crioFlags = []string{
	"-trimpath", "-buildvcs=false", "-ldflags", "-s -w -linkmode external -extldflags -static",
	"-tags", "netgo osusergo containers_image_openpgp containers_image_ostree_stub exclude_graphdriver_btrfs exclude_graphdriver_devicemapper",
}

// crioRecipe changes whenever buildCRIO would make something else of the same
// module.
const crioRecipe = "1"

// crio returns the path of a disk with crio and pinns, the program that makes
// its pods' namespaces. Debian has no package of them.
func (c cache) crio(ctx context.Context, root string) (string, error) {
	module := filepath.Join(root, "hack/crio")
	inputs, err := nestedModule(module)
	if err != nil {
		return "", err
	}
	dir, err := c.artefact(ctx, "crio", slices.Concat(inputs, crioFlags, []string{crioRecipe}), func(ctx context.Context, dir string) error {
		return buildCRIO(ctx, dir, module)
	})
	return filepath.Join(dir, "crio.img"), err
}

func buildCRIO(ctx context.Context, dir, module string) error {
	contents := filepath.Join(dir, "contents")
	if err := os.Mkdir(contents, 0o755); err != nil {
		return err
	}
	const path = "github.com/cri-o/cri-o"
	build := slices.Concat([]string{"go", "build", "-C", module}, crioFlags, []string{"-o", filepath.Join(contents, "crio"), path + "/cmd/crio"})
	if err := command(ctx, append(slices.Clone(goEnv), "CGO_ENABLED=1"), build...); err != nil {
		return fmt.Errorf("build crio: %w", err)
	}
	sources, err := commandOutput(ctx, goEnv, "go", "list", "-C", module, "-m", "-f", "{{.Dir}}", path)
	if err != nil {
		return fmt.Errorf("find the sources of pinns: %w", err)
	}
	files, err := filepath.Glob(filepath.Join(strings.TrimSpace(string(sources)), "pinns/src/*.c"))
	if err != nil {
		return err
	}
	gcc := append([]string{"gcc", "-std=c99", "-O2", "-static", "-s", "-o", filepath.Join(contents, "pinns")}, files...)
	if err := command(ctx, nil, gcc...); err != nil {
		return fmt.Errorf("build pinns: %w", err)
	}
	if err := makeDisk(ctx, filepath.Join(dir, "crio.img"), contents, "100M"); err != nil {
		return err
	}
	return removeTree(contents)
}

// crioFiles are those of a run with CRI-O.
func crioFiles(o Options) map[string]string {
	return map[string]string{
		"/etc/crio/crio.conf":                  crioConfig(o),
		"/etc/containers/policy.json":          `{"default": [{"type": "insecureAcceptAnything"}]}` + "\n",
		"/etc/containers/storage.conf":         storageConfig,
		"/etc/systemd/system/crio.service":     crioUnit,
		"/etc/systemd/system/" + imagesService: crioImagesUnit,
	}
}

// crioConfig puts conmon, the monitor of a container, beside it in the pod's
// cgroup; elsewhere there is nothing to tell apart. CRI-O admits no memory limit below
// 12 MiB.
func crioConfig(o Options) string {
	return fmt.Sprintf(`[crio.api]
listen = %q

[crio.runtime]
cgroup_manager = %q
default_runtime = "default"
pinns_path = %q

[crio.runtime.runtimes.default]
runtime_type = "oci"
runtime_path = %q
runtime_root = "/run/oci"
monitor_path = "/usr/bin/conmon"
monitor_cgroup = "pod"

[crio.image]
pause_image = %q

[crio.network]
network_dir = "/etc/cni/net.d"
plugin_dirs = ["/usr/lib/cni"]
`, strings.TrimPrefix(crioSocket, "unix://"), o.CgroupDriver, crioDir+"/pinns", "/usr/bin/"+o.Runtime, PauseImage)
}

// storageConfig is read by skopeo and CRI-O, so that one finds the other's images.
const storageConfig = `[storage]
driver = "overlay"
graphroot = "/var/lib/containers/storage"
runroot = "/run/containers/storage"
`

// crioUnit mounts by a command: without udev, systemd waits for a disk in vain.
const crioUnit = `[Unit]
Description=CRI-O

[Service]
Type=notify
ExecStartPre=/bin/mkdir -p ` + crioDir + `
ExecStartPre=/bin/mount -t ext4 -o ro /dev/vdc ` + crioDir + `
ExecStart=` + crioDir + `/crio
# As for any runtime: what it starts outlives it.
KillMode=process
Delegate=yes
TasksMax=infinity
LimitNOFILE=1048576
OOMScoreAdjust=-999
`

var crioImagesUnit = `[Unit]
Description=import of the test images
After=crio.service
Requires=crio.service

[Service]
Type=oneshot
RemainAfterExit=yes
` + importCommands()

func importCommands() string {
	var b strings.Builder
	for _, name := range []string{PauseImage, BusyboxImage, WorkloadImage} {
		fmt.Fprintf(&b, "ExecStart=/usr/bin/skopeo copy docker-archive:%s/images.tar:%s containers-storage:%s\n", stateDir, name, name)
	}
	return b.String()
}
