#!/bin/sh
# The first program of the virtual machine: finds the disks, lays the files of
# this run over the root file system, and hands over to systemd.
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev

# Whether an accelerator works is found out by getting this far with it.
if grep -q memqos.probe /proc/cmdline; then
	echo memqos-probe-works >/dev/console
	poweroff -f
fi

while read -r module; do
	insmod "/modules/$module"
done </modules/order

until [ -b /dev/vda ] && [ -b /dev/vdb ]; do sleep 0.1; done
# Nothing here outlives the machine.
mount -t ext4 -o noatime,noinit_itable /dev/vda /root
mkdir -p /root/opt/kubernetes
mount -t ext4 -o ro /dev/vdb /root/opt/kubernetes
cp -a /overlay/. /root/

ip link set lo up
ip addr add 10.0.2.15/24 dev eth0
ip link set eth0 up
ip route add default via 10.0.2.2

umount /proc /sys
mount --move /dev /root/dev
exec switch_root /root /sbin/init
