#!/bin/sh
# The first process of the test kernel. Its standard output is the kernel's console;
# what belongs to the job goes to /dev/tty1, which is a pipe on the host.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
dir=@DIR@

power_off() {
	sync
	echo o >/proc/sysrq-trigger
	sleep 60
}
# Without a verdict, which the host takes for a failure.
trap power_off EXIT
set -e

mount -t proc proc /proc
mount -t sysfs sysfs /sys
grep -q ' /dev devtmpfs ' /proc/mounts || mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /mnt
mount -t tmpfs tmpfs /var/lib
mount -t hostfs hostfs "$dir" -o "$dir"
mount -t tmpfs tmpfs "$dir/memory"
mkdir -p /run/lock /dev/shm /dev/pts
mount -t tmpfs tmpfs /dev/shm
[ -e /dev/fd ] || ln -s /proc/self/fd /dev/fd
for module in @MODULES@; do
	insmod "$module"
done
ip link set lo up 2>/dev/null || true # only NBD over TCP needs it

stty raw -echo </dev/tty1
: >"$dir/started"
set +e
(
	cd @WORK@ || exit 127
	exec env @ENV@ sh "$dir/job"
) </dev/null >/dev/tty1 2>&1
code=$?
echo "$code" >"$dir/verdict.new"
mv "$dir/verdict.new" "$dir/verdict"
