package testnode

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
)

//go:embed initramfs.sh
var initScript []byte

// initApplets are the busybox applets that initramfs.sh uses.
var initApplets = []string{
	"cp", "echo", "grep", "insmod", "ip", "mkdir", "mount", "poweroff", "sh", "sleep", "switch_root", "umount",
}

// guestPackages are what a node needs on top of debootstrap's minimum, by its CRI
// runtime. CRI-O itself is built: Debian has none.
var guestPackages = map[string][]string{
	"containerd": {
		"systemd", "systemd-sysv", "dbus", "containerd", "runc", "crun",
		"containernetworking-plugins", "iptables", "kmod", "iproute2", "procps",
	},
	"cri-o": {
		"systemd", "systemd-sysv", "dbus", "conmon", "skopeo", "runc", "crun",
		"containernetworking-plugins", "iptables", "kmod", "iproute2", "procps",
	},
}

// maskedUnits cost boot time on an emulated CPU and do nothing for a node that
// lives for minutes.
var maskedUnits = []string{
	"apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer",
	"e2scrub_reap.service", "fstrim.timer", "motd-news.timer", "systemd-tmpfiles-clean.timer",
	"getty.target", "console-getty.service", "serial-getty@ttyS0.service", "getty@tty1.service",
	"systemd-binfmt.service", "systemd-hwdb-update.service", "systemd-journal-flush.service",
	"systemd-logind.service", "systemd-machine-id-commit.service", "systemd-pstore.service",
	"systemd-random-seed.service", "systemd-sysusers.service", "systemd-update-done.service",
	"systemd-update-utmp.service", "systemd-update-utmp-runlevel.service", "systemd-user-sessions.service",
	"ldconfig.service", "systemd-journal-catalog-update.service", "systemd-firstboot.service",
	"dev-hugepages.mount", "dev-mqueue.mount", "sys-kernel-debug.mount", "sys-kernel-tracing.mount",
	"sys-kernel-config.mount", "sys-fs-fuse-connections.mount", "proc-sys-fs-binfmt_misc.automount",
	"modprobe@configfs.service", "modprobe@drm.service", "modprobe@efi_pstore.service", "modprobe@fuse.service",
}

// rootRecipe changes whenever buildDebian would make something else of the same
// packages.
const rootRecipe = "1"

// diskSize is that of the root file system; the image is sparse.
const diskSize = "6G"

// debian is a release's kernel and root file system, ready to boot.
type debian struct {
	kernel    string // path of vmlinuz
	initramfs string // path of the first part of the initial root
	disk      string // path of the root file system's image
	version   string // of the kernel
}

func (c cache) debian(ctx context.Context, o Options) (debian, error) {
	name, inputs := "debian-"+o.Debian, []string{rootRecipe, o.Debian, diskSize, string(initScript)}
	if o.Kernel != o.Debian {
		name += "-kernel-" + o.Kernel
		inputs = append(inputs, o.Kernel)
	}
	if o.CRI != "containerd" {
		name += "-" + o.CRI
	}
	inputs = slices.Concat(inputs, initApplets, guestPackages[o.CRI], maskedUnits, bootModules)
	dir, err := c.artefact(ctx, name, inputs, func(ctx context.Context, dir string) error {
		return buildDebian(ctx, dir, o)
	})
	if err != nil {
		return debian{}, err
	}
	version, err := os.ReadFile(filepath.Join(dir, "version"))
	if err != nil {
		return debian{}, err
	}
	return debian{
		kernel:    filepath.Join(dir, "vmlinuz"),
		initramfs: filepath.Join(dir, "initramfs"),
		disk:      filepath.Join(dir, "root.img"),
		version:   string(version),
	}, nil
}

func buildDebian(ctx context.Context, dir string, o Options) error {
	if os.Geteuid() != 0 {
		return errors.New("making a root file system needs root")
	}
	work := filepath.Join(dir, "work")
	kernel, root := filepath.Join(work, "kernel"), filepath.Join(work, "root")
	if err := os.MkdirAll(work, 0o755); err != nil {
		return err
	}
	group, groupCtx := errgroup.WithContext(ctx)
	var version string
	group.Go(func() (err error) {
		version, err = unpackKernel(groupCtx, filepath.Join(work, "apt"), kernel, o.Kernel)
		return err
	})
	group.Go(func() error { return bootstrap(groupCtx, root, o.Debian, guestPackages[o.CRI]) })
	if err := group.Wait(); err != nil {
		return err
	}

	if err := copyFile(filepath.Join(dir, "vmlinuz"), filepath.Join(kernel, "boot/vmlinuz-"+version), 0o644); err != nil {
		return err
	}
	initramfs, err := buildInitramfs(ctx, filepath.Join(kernel, "lib/modules", version))
	if err != nil {
		return fmt.Errorf("make the initial root: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "initramfs"), initramfs, 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "version"), []byte(version), 0o644); err != nil {
		return err
	}
	if err := furnishRoot(root, filepath.Join(kernel, "lib/modules", version)); err != nil {
		return fmt.Errorf("furnish the root file system: %w", err)
	}
	if err := makeDisk(ctx, filepath.Join(dir, "root.img"), root, diskSize); err != nil {
		return err
	}
	return removeTree(work)
}

// unpackKernel returns the version of the release's kernel for virtual machines.
func unpackKernel(ctx context.Context, aptDir, dir, release string) (string, error) {
	a, err := newApt(ctx, aptDir, release)
	if err != nil {
		return "", err
	}
	const prefix = "linux-image-"
	images, err := a.dependencies(ctx, prefix+"cloud-amd64")
	if err != nil {
		return "", err
	}
	images = slices.DeleteFunc(images, func(name string) bool { return !strings.HasPrefix(name, prefix) })
	if len(images) != 1 {
		return "", fmt.Errorf("package %scloud-amd64 depends on %q: want one %s*", prefix, images, prefix)
	}
	image := images[0]
	version := strings.TrimPrefix(image, prefix)
	packages, err := a.dependencies(ctx, image)
	if err != nil {
		return "", err
	}
	// Since Debian 14 the image itself is empty.
	packages = slices.DeleteFunc(packages, func(name string) bool {
		return name != "linux-binary-"+version && name != "linux-modules-"+version
	})
	for _, name := range append(packages, image) {
		if err := a.unpack(ctx, name, dir); err != nil {
			return "", err
		}
	}
	// Releases with a merged /usr keep the modules there.
	if merged := filepath.Join(dir, "usr/lib/modules"); exists(merged) {
		if err := os.MkdirAll(filepath.Join(dir, "lib"), 0o755); err != nil {
			return "", err
		}
		if err := os.Rename(merged, filepath.Join(dir, "lib/modules")); err != nil {
			return "", err
		}
	}
	if among := filepath.Join(dir, "lib/modules", version, "vmlinuz"); exists(among) { // since Debian 14
		if err := os.MkdirAll(filepath.Join(dir, "boot"), 0o755); err != nil {
			return "", err
		}
		if err := os.Rename(among, filepath.Join(dir, "boot/vmlinuz-"+version)); err != nil {
			return "", err
		}
	}
	if err := command(ctx, nil, "depmod", "--basedir", dir, version); err != nil {
		return "", fmt.Errorf("index kernel modules: %w", err)
	}
	return version, nil
}

func bootstrap(ctx context.Context, root, release string, packages []string) error {
	archive, _, err := hostArchives()
	if err != nil {
		return err
	}
	// In a mount namespace of its own: a killed debootstrap leaves no mounts.
	return command(ctx, []string{"DEBIAN_FRONTEND=noninteractive"}, "unshare", "--mount",
		"debootstrap", "--variant=minbase", "--include="+strings.Join(packages, ","), release, root, archive)
}

func buildInitramfs(ctx context.Context, modules string) ([]byte, error) {
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return nil, err
	}
	index, err := os.ReadFile(filepath.Join(modules, "modules.dep"))
	if err != nil {
		return nil, err
	}
	files := []file{
		{"init", 0o755, initScript},
		{"bin/busybox", 0o755, busybox},
	}
	for _, dir := range []string{"proc", "sys", "dev", "root", "overlay"} {
		files = append(files, file{path: dir, mode: os.ModeDir | 0o755})
	}
	for _, applet := range initApplets {
		files = append(files, symlink("bin/"+applet, "busybox"))
	}
	var order []string
	for _, module := range moduleLoadOrder(string(index), bootModules) {
		content, err := readModule(ctx, filepath.Join(modules, module))
		if err != nil {
			return nil, fmt.Errorf("read module %s: %w", module, err)
		}
		name := moduleName(module) + ".ko"
		files = append(files, file{"modules/" + name, 0o644, content})
		order = append(order, name+"\n")
	}
	files = append(files, file{"modules/order", 0o644, []byte(strings.Join(order, ""))})
	return cpio(files), nil
}

// readModule returns the module itself; Debian compresses them since 6.12, and
// busybox's insmod cannot.
func readModule(ctx context.Context, path string) ([]byte, error) {
	if filepath.Ext(path) == ".xz" {
		return commandOutput(ctx, nil, "xz", "--decompress", "--stdout", path)
	}
	return os.ReadFile(path)
}

// furnishRoot puts in what every run shares.
func furnishRoot(root, modules string) error {
	for _, dir := range []string{"usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "var/cache/apt", "var/lib/apt/lists"} {
		if err := removeTree(filepath.Join(root, dir)); err != nil {
			return err
		}
	}
	target := filepath.Join(root, "usr/lib/modules", filepath.Base(modules))
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return err
	}
	if err := os.Rename(modules, target); err != nil {
		return err
	}
	units := filepath.Join(root, "etc/systemd/system")
	for _, unit := range maskedUnits {
		if err := replaceSymlink(filepath.Join(units, unit), "/dev/null"); err != nil {
			return err
		}
	}
	if err := replaceSymlink(filepath.Join(units, "default.target"), "/lib/systemd/system/multi-user.target"); err != nil {
		return err
	}
	journal := filepath.Join(root, "etc/systemd/journald.conf.d/volatile.conf")
	if err := os.MkdirAll(filepath.Dir(journal), 0o755); err != nil {
		return err
	}
	return os.WriteFile(journal, []byte("[Journal]\nStorage=volatile\n"), 0o644)
}

func replaceSymlink(path, target string) error {
	if err := os.RemoveAll(path); err != nil {
		return err
	}
	return os.Symlink(target, path)
}

// makeDisk makes an ext4 image with the contents of a directory. It is only
// ever written through QEMU's throw-away overlay: it needs no journal.
func makeDisk(ctx context.Context, image, contents, size string) error {
	err := command(ctx, nil, "mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-m", "0",
		"-E", "lazy_itable_init=1", "-d", contents, image, size)
	if err != nil {
		return fmt.Errorf("make a disk image: %w", err)
	}
	return nil
}
