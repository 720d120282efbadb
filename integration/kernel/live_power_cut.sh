# One life of a machine whose power may be cut at any moment, while a file system is
# written to whose volume moves. The first disk holds the journal and the image, the
# second one is the destination. $FIRST is set in the first life, and $LAST in the one
# that is not cut. $FS is the file system in the image, $FLAGS are those of the migration.
# The files $OLD are there already, those from $NEXT to $MOST are to be written.
set -e
set -- $DECANT_TEST_DISKS
home=$1 destination=$2
mkdir /mnt/home /mnt/live /mnt/image
# content N is what the file of that number holds, the same in each life.
content() { yes "file $1 of the volume" | head -c 262144; }
check() {
	for n in "$@"; do
		content "$n" | cmp - /mnt/live/"$n" || echo "lost $n"
	done
}

[ -z "$FIRST" ] || mkfs.ext4 -q -F "$home"
mount "$home" /mnt/home
if [ -n "$FIRST" ]; then
	truncate -s "$IMAGE_BYTES" /mnt/home/image
	case $FS in
	ext4) mkfs.ext4 -q -F /mnt/home/image ;;
	xfs) mkfs.xfs -q -f /mnt/home/image ;;
	esac
	mount -o loop /mnt/home/image /mnt/image
	for n in $(seq 1000 1029); do content "$n" >/mnt/image/"$n"; done
	umount /mnt/image
	sync
fi

{
	code=0
	# shellcheck disable=SC2086 # several flags
	"$PROGRAMS/migrate" --state-dir /mnt/home/state --progress=json --discard-src --live vm --engine user $FLAGS \
		/mnt/home/image "$destination" || code=$?
	echo "ended with code $code"
} 2>&1 | sed -u "s/^/migration /" &
until [ -e /dev/mapper/vm ]; do sleep 0.1; done
mount /dev/mapper/vm /mnt/live
echo "mounted"
# shellcheck disable=SC2086 # several numbers
check $OLD $(seq 1000 1029)
echo "checked"
n=$NEXT
while [ "$n" -le "$MOST" ]; do
	content "$n" >/mnt/live/"$n"
	sync /mnt/live/"$n" /mnt/live
	echo "durable $n"
	n=$((n + 1))
done
wait
echo "all ended"
[ -n "$LAST" ] || sleep 1000

# shellcheck disable=SC2046 # several numbers
check $(seq 1 "$MOST") $(seq 1000 1029)
dmsetup table vm
umount /mnt/live
case $FS in
ext4) e2fsck -fn "$destination" ;;
xfs) xfs_repair -n "$destination" ;;
esac
dmsetup remove vm
# The mark may take a block.
[ "$(stat -c %b /mnt/home/image)" -gt 8 ] || echo "the source is empty"
umount /mnt/home
e2fsck -fn "$home"
