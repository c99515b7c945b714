package testnode

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

const (
	qemu     = "qemu-system-x86_64"
	probeMax = 15 * time.Second // KVM gets there in one second where it works
)

// accelerator is "kvm" where booting with it works, else "tcg": /dev/kvm may
// exist and not work. The answer holds until the host reboots.
func (c cache) accelerator(ctx context.Context, d debian) (string, error) {
	device, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return "tcg", nil //nolint:nilerr // no KVM is an answer
	}
	if err := device.Close(); err != nil {
		return "", err
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("identify this boot: %w", err)
	}
	dir, err := c.artefact(ctx, "accelerator", []string{string(boot)}, func(ctx context.Context, dir string) error {
		answer := "tcg"
		if kvmBoots(ctx, d, filepath.Join(dir, "console.log")) {
			answer = "kvm"
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, "answer"), []byte(answer), 0o644)
	})
	if err != nil {
		return "", err
	}
	answer, err := os.ReadFile(filepath.Join(dir, "answer"))
	return string(answer), err
}

func kvmBoots(ctx context.Context, d debian, console string) bool {
	ctx, cancel := context.WithTimeout(ctx, probeMax)
	defer cancel()
	argv := append(machine("kvm", 256, 1, "host"), "-kernel", d.kernel, "-initrd", d.initramfs,
		"-append", "console=ttyS0 panic=-1 memqos.probe", "-serial", "file:"+console)
	if command(ctx, nil, argv...) != nil {
		return false
	}
	output, err := os.ReadFile(console)
	return err == nil && strings.Contains(string(output), "memqos-probe-works")
}

// machine is the part of the command line that every boot shares.
func machine(accelerator string, memoryMiB, cpus int, cpu string) []string {
	accel := accelerator
	if accelerator == "tcg" {
		accel = "tcg,thread=multi,tb-size=512"
	}
	return []string{
		qemu, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-machine", "pc", "-accel", accel, "-cpu", cpu,
		"-m", strconv.Itoa(memoryMiB), "-smp", strconv.Itoa(cpus),
	}
}

// kernelCommandLine: psi is off by default in some kernels; without a
// mitigations=off an emulated CPU spends its time on flaws it does not have.
const kernelCommandLine = "console=ttyS0 panic=-1 quiet psi=1 systemd.unified_cgroup_hierarchy=1 " +
	"mitigations=off apparmor=0 net.ifnames=0 random.trust_cpu=on systemd.show_status=0"

// bootMachine starts the virtual machine; the guest agent tells when it is up. It
// leaves the processor to the control plane: an emulated node is never idle.
func bootMachine(o Options, built artefacts, dir, initramfs string, agentHostPort int) (*process, error) {
	cpu := "host"
	if built.accelerator == "tcg" {
		// Linux 6.12 hit a double fault on QEMU 7.2's cmpxchg16b.
		cpu = "max,cx16=off"
	}
	argv := append(machine(built.accelerator, o.MemoryMiB, o.CPUs, cpu),
		"-kernel", built.debian.kernel, "-initrd", initramfs, "-append", kernelCommandLine,
		"-serial", "file:"+filepath.Join(dir, consoleLog),
		// What is written goes to a temporary file that QEMU has unlinked.
		"-drive", "file="+built.debian.disk+",format=raw,if=virtio,snapshot=on,cache=unsafe",
		"-drive", "file="+built.kubelet+".img,format=raw,if=virtio,readonly=on",
		"-netdev", fmt.Sprintf("user,id=net,hostfwd=tcp:127.0.0.1:%d-:%d", agentHostPort, agentPort),
		// No boot ROM: nothing boots from the network.
		"-device", "virtio-net-pci,netdev=net,romfile=",
	)
	if built.crio != "" {
		argv = append(argv, "-drive", "file="+built.crio+",format=raw,if=virtio,readonly=on")
	}
	return startProcess("qemu", filepath.Join(dir, "qemu.log"), append([]string{"nice", "-n", "5", "env", "TMPDIR=" + dir}, argv...)...)
}

const consoleLog = "console.log"

// guestDied explains the end of a machine that should be running.
func guestDied(vm *process, dir string) error {
	err := vm.exited()
	if err == nil {
		return nil
	}
	console := filepath.Join(dir, consoleLog)
	return errors.Join(err, fmt.Errorf("console, %s:\n%s", console, tail(console, 25)))
}
