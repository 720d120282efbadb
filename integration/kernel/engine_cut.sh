# One life of a machine whose power may be cut at any moment. The volume of a migration is
# mounted and written to while the kernel hydrates it. $FIRST is set in the first life, and
# $LAST in the one that is not cut. Of the files new0, new1, ... those below $SYNCED were
# durable in earlier lives. $FS is the file system in the image, of $IMAGE_BYTES.
set -e
set -- $DECANT_TEST_DISKS
journals=$1 source_disk=$2 metadata=$3 data=$4
volume=/dev/mapper/destination live=/dev/mapper/live
content() { seq "$1" 1000000 | head -c 300000; }
check() { content "$2" | cmp - "$1" || echo "lost: $1 is not what was synced"; }

mkdir /mnt/journals /mnt/source /mnt/image /mnt/live
[ -z "$FIRST" ] || mkfs.ext4 -q -F "$journals"
mount "$journals" /mnt/journals
[ -z "$FIRST" ] || mkfs.ext4 -q -F "$source_disk"
[ -n "$FIRST" ] || thin_check "$metadata"
mount "$source_disk" /mnt/source
dmsetup create pool --table "0 $(blockdev --getsz "$data") thin-pool $metadata $data 128 0"
if [ -n "$FIRST" ]; then
	truncate -s "$IMAGE_BYTES" /mnt/source/image
	case $FS in
	ext4) mkfs.ext4 -q -F /mnt/source/image ;;
	xfs) mkfs.xfs -q -f /mnt/source/image ;;
	esac
	mount -o loop /mnt/source/image /mnt/image
	for i in $(seq 60); do content "7$i" >/mnt/image/old$i; done
	umount /mnt/image
	dmsetup message pool 0 "create_thin 1"
	sync
fi
dmsetup create destination --table "0 $((IMAGE_BYTES / 512)) thin /dev/mapper/pool 1"

code=0
{
	"$PROGRAMS/migrate" --state-dir /mnt/journals/state --progress=json --discard-src --live live --engine kernel \
		--region-size=64KiB --commit-bytes=1MiB --commit-period=100ms --bwlimit=2MiB \
		/mnt/source/image $volume || code=$?
	echo "ended with code $code"
} &
while ! [ -b $live ]; do sleep 0.02; done
mount $live /mnt/live
for i in $(seq 60); do check /mnt/live/old$i "7$i"; done
n=0
while [ "$n" -lt "$SYNCED" ]; do
	check /mnt/live/new$n "$n"
	n=$((n + 1))
done
echo "checked $n files"
while [ "$n" -lt 40 ] && { [ -z "$LAST" ] || [ "$n" -lt $((SYNCED + 3)) ]; }; do
	content "$n" >/mnt/live/new$n
	sync /mnt/live/new$n
	echo "synced $n."
	n=$((n + 1))
done
echo "wrote all"
[ -n "$LAST" ] || sleep 1000
wait

dmsetup table live
echo 3 >/proc/sys/vm/drop_caches
for i in $(seq 60); do check /mnt/live/old$i "7$i"; done
umount /mnt/live
case $FS in
ext4) e2fsck -fn $live ;;
xfs) xfs_repair -n $live ;;
esac
# The mark may take a block.
[ "$(stat -c %b /mnt/source/image)" -gt 8 ] || echo "source is empty"
dmsetup remove live
umount /mnt/source
e2fsck -fn "$source_disk"
dmsetup remove destination
dmsetup remove pool
thin_check "$metadata"
ls /mnt/journals/state
umount /mnt/journals
e2fsck -fn "$journals"
echo "finished"
