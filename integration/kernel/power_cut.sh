# One life of a machine whose power may be cut at any moment. Two migrations run side
# by side, each on a source disk, a metadata disk and a data disk of its own; the first
# disk holds the journals. $FIRST is set in the first life, and $LAST in the one that
# is not cut. $LANES is in the order in which the lanes' devices are made, which
# changes, and their numbers with it. $FSn and $SECTORSn are a lane's file system and
# the block size of its pool, $FLAGSn those of its migration.
set -e
set -- $DECANT_TEST_DISKS
lane() {
	n=$1
	eval "fs=\$FS$n sectors=\$SECTORS$n flags=\$FLAGS$n"
	eval "source_disk=\$source_disk$n metadata=\$metadata$n data=\$data$n"
	dir=/mnt/lane$n volume=/dev/mapper/volume$n
}
journals=$1
source_disk0=$2 metadata0=$3 data0=$4 source_disk1=$5 metadata1=$6 data1=$7

mkdir /mnt/journals
[ -z "$FIRST" ] || mkfs.ext4 -q -F "$journals"
mount "$journals" /mnt/journals
for n in $LANES; do
	lane $n
	mkdir $dir
	if [ -n "$FIRST" ]; then
		case $fs in
		ext4) mkfs.ext4 -q -F "$source_disk" ;;
		xfs) mkfs.xfs -q -f "$source_disk" ;;
		esac
	else
		thin_check "$metadata"
	fi
	mount "$source_disk" $dir
	dmsetup create pool$n --table "0 $(blockdev --getsz "$data") thin-pool $metadata $data $sectors 0"
	if [ -n "$FIRST" ]; then
		cp --sparse=always "$IMAGE" $dir/image
		dmsetup message pool$n 0 "create_thin 1"
	fi
	dmsetup create volume$n --table "0 $((IMAGE_BYTES / 512)) thin /dev/mapper/pool$n 1"
done
[ -z "$FIRST" ] || sync

for n in $LANES; do
	lane $n
	{
		code=0
		"$PROGRAMS/migrate" --state-dir /mnt/journals/state --progress=json --discard-src $flags \
			$dir/image $volume || code=$?
		echo "ended with code $code"
	} 2>&1 | sed -u "s/^/lane $n /" &
done
wait
echo "both ended"
[ -n "$LAST" ] || sleep 1000

for n in $LANES; do
	lane $n
	sum=$(dd if=$volume iflag=direct bs=64k status=none | sha256sum)
	echo "lane $n holds ${sum%% *}"
	# The mark may take a block.
	[ "$(stat -c %b $dir/image)" -gt 8 ] || echo "lane $n source is empty"
	umount $dir
	dmsetup remove volume$n
	dmsetup remove pool$n
	thin_check "$metadata"
	case $fs in
	ext4) e2fsck -fn "$source_disk" ;;
	xfs) xfs_repair -n "$source_disk" ;;
	esac
done
umount /mnt/journals
e2fsck -fn "$journals"
