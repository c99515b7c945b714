package testnode

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// Where the payload puts things in the guest.
const (
	guestBinary = "/usr/local/bin/testnode-guest"
	stateDir    = "/var/lib/testnode"
)

// payload is what belongs to one run: files that the initial root lays over
// the root file system, which every run shares.
func payload(o Options, plane *controlPlane, guestPath, imagesPath, token string) ([]file, error) {
	kubelet, err := kubeletConfig(o)
	if err != nil {
		return nil, err
	}
	kubeconfig, err := plane.authority.kubeconfig(plane.guestURL(), "system:node:"+nodeName, "system:nodes")
	if err != nil {
		return nil, err
	}
	serving, err := plane.authority.server("system:node:"+nodeName, nodeName, guestAddress, "127.0.0.1")
	if err != nil {
		return nil, err
	}
	guest, err := os.ReadFile(guestPath)
	if err != nil {
		return nil, err
	}
	images, err := os.ReadFile(imagesPath)
	if err != nil {
		return nil, err
	}
	machineID := make([]byte, 16)
	if _, err := rand.Read(machineID); err != nil {
		return nil, fmt.Errorf("make a machine id: %w", err)
	}

	text := map[string]string{
		"/etc/hostname":                              nodeName + "\n",
		"/etc/hosts":                                 "127.0.0.1 localhost\n" + guestAddress + " " + nodeName + "\n",
		"/etc/resolv.conf":                           "nameserver " + nameserver + "\n",
		"/etc/machine-id":                            hex.EncodeToString(machineID) + "\n",
		"/etc/cni/net.d/10-ptp.conflist":             cniConfig,
		"/etc/sysctl.d/50-testnode.conf":             "net.ipv4.ip_forward = 1\nvm.nr_hugepages = 4\n", // of 2 MiB
		"/etc/systemd/system/testnode-guest.service": guestUnit,
		"/etc/systemd/system/kubelet.service":        kubeletUnit(o),
	}
	maps.Copy(text, runtimeFiles(o))
	files := []file{
		{strings.TrimPrefix(guestBinary, "/"), 0o755, guest},
		{strings.TrimPrefix(stateDir, "/") + "/images.tar", 0o644, images},
		{strings.TrimPrefix(stateDir, "/") + "/token", 0o600, []byte(token)},
		{"etc/kubernetes/kubelet.json", 0o644, kubelet},
		{"etc/kubernetes/kubeconfig", 0o600, kubeconfig},
		{"etc/kubernetes/ca.crt", 0o644, plane.authority.pem},
		{"etc/kubernetes/kubelet.crt", 0o644, serving.certificate},
		{"etc/kubernetes/kubelet.key", 0o600, serving.key},
		{path: "etc/kubernetes/manifests", mode: os.ModeDir | 0o755},
	}
	for name, content := range text {
		files = append(files, file{strings.TrimPrefix(name, "/"), 0o644, []byte(content)})
	}
	for name, manifest := range o.StaticPods {
		if name != filepath.Base(name) {
			return nil, fmt.Errorf("static pod %q: want a file name", name)
		}
		files = append(files, file{"etc/kubernetes/manifests/" + name, 0o644, manifest})
	}
	for _, unit := range []string{"testnode-guest.service", imagesService, "kubelet.service"} {
		files = append(files, symlink("etc/systemd/system/multi-user.target.wants/"+unit, "../"+unit))
	}
	return files, nil
}

// writeInitramfs joins the release's part with the run's.
func writeInitramfs(output, base string, files []file) error {
	overlay := make([]file, len(files))
	for i, f := range files {
		overlay[i] = f
		overlay[i].path = path.Join("overlay", f.path)
	}
	first, err := os.ReadFile(base)
	if err != nil {
		return err
	}
	out, err := os.OpenFile(output, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = out.Write(first)
	if err == nil {
		_, err = out.Write(cpio(overlay))
	}
	return errors.Join(err, out.Close())
}

const guestUnit = `[Unit]
Description=test node agent
# As early as can be: it is what tells of a boot that goes wrong.
DefaultDependencies=no
After=-.mount

[Service]
ExecStart=` + guestBinary + ` -listen=:10 -token-file=` + stateDir + `/token
Restart=always
# Killing it must not take what it runs along, nor the reverse.
KillMode=process
OOMScoreAdjust=-1000
`

// imagesService imports the images once the CRI runtime runs.
const imagesService = "testnode-images.service"

// runtimeFiles are those of the CRI runtime.
func runtimeFiles(o Options) map[string]string {
	if o.CRI == "cri-o" {
		return crioFiles(o)
	}
	return map[string]string{
		"/etc/containerd/config.toml":          containerdConfig(o),
		"/etc/systemd/system/" + imagesService: imagesUnit,
	}
}

const imagesUnit = `[Unit]
Description=import of the test images
After=containerd.service
Requires=containerd.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/bin/ctr -n k8s.io images import ` + stateDir + `/images.tar
`

// containerdConfig is of version 2, which containerd 1.6 to 2.x read.
func containerdConfig(o Options) string {
	return fmt.Sprintf(`version = 2
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing"]

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = %q
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "default"
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.default]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.default.options]
        BinaryName = %q
        SystemdCgroup = %t
`, PauseImage, "/usr/bin/"+o.Runtime, o.CgroupDriver == "systemd")
}

// The pods' network holds as many as maxPods allows.
const cniConfig = `{
  "cniVersion": "0.4.0",
  "name": "pods",
  "plugins": [
    {
      "type": "ptp",
      "ipMasq": true,
      "ipam": {
        "type": "host-local",
        "ranges": [[{"subnet": "10.244.0.0/20"}]],
        "routes": [{"dst": "0.0.0.0/0"}]
      }
    }
  ]
}
`
