package testnode

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestModuleLoadOrder(t *testing.T) {
	const index = `kernel/drivers/virtio/virtio_ring.ko:
kernel/drivers/virtio/virtio.ko: kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/virtio/virtio_pci.ko: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/block/virtio_blk.ko.xz: kernel/drivers/virtio/virtio_ring.ko kernel/drivers/virtio/virtio.ko
kernel/sound/other.ko:
`
	// ext4 is built in: it has no line.
	got := moduleLoadOrder(index, []string{"virtio_pci", "virtio_blk", "ext4"})
	want := []string{
		"kernel/drivers/virtio/virtio_ring.ko",
		"kernel/drivers/virtio/virtio.ko",
		"kernel/drivers/virtio/virtio_pci.ko",
		"kernel/drivers/block/virtio_blk.ko.xz",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestModuleName(t *testing.T) {
	for path, want := range map[string]string{
		"kernel/a/virtio-rng.ko.xz": "virtio_rng",
		"kernel/a/ext4.ko":          "ext4",
	} {
		if got := moduleName(path); got != want {
			t.Errorf("%s: got %q, want %q", path, got, want)
		}
	}
}
