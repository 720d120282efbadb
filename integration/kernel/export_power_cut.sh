# One life of a machine whose power may be cut at any moment, while a volume that hydrates
# into a file is written to over NBD. The disk holds the journal, the image, a copy of it,
# and the destination, all on a file system $FS. $FIRST is set in the first life, and $LAST
# in the one that is not cut. $FLAGS are those of the migration. The writes $OLD were
# flushed in earlier lives, those from $NEXT to $MOST are to be made.
set -e
disk=$DECANT_TEST_DISKS socket=/run/volume.sock
mkdir /mnt/home
if [ -n "$FIRST" ]; then
	case $FS in
	ext4) mkfs.ext4 -q -F "$disk" ;;
	xfs) mkfs.xfs -q -f "$disk" ;;
	esac
fi
mount "$disk" /mnt/home
cd /mnt/home
if [ -n "$FIRST" ]; then
	head -c "$IMAGE_BYTES" /dev/urandom >kept
	cp kept image
	sync
fi
# Write N has a place and a byte of its own, the same in each life. It fills no whole region,
# and is made in two: the first has the region copied, the second is made in place.
place() { echo $((n * 327680 + 4096)); }
byte() { echo "-P $((n % 255 + 1))"; }
use() { # a volume or a file, and commands for it
	where=$1
	shift
	qemu-io -f raw "$@" "$where" 2>&1 | sed "s/^/client /"
}

{
	code=0
	# shellcheck disable=SC2086 # several flags
	"$PROGRAMS/migrate" --state-dir /mnt/home/state --progress=json --discard-src --export "$socket" $FLAGS \
		/mnt/home/image /mnt/home/moved || code=$?
	echo "ended with code $code"
} 2>&1 | sed -u "s/^/migration /" &
until [ -S "$socket" ]; do sleep 0.1; done
volume="nbd+unix:///?socket=$socket"
# One client stays, so that the migration does not end in between.
mkfifo /run/stay
qemu-io -f raw "$volume" </run/stay >/dev/null &
exec 9>/run/stay
for n in $OLD; do
	use "$volume" -c "read $(byte) $(place) 12288"
done
echo "checked"
n=$NEXT
while [ "$n" -le "$MOST" ]; do
	use "$volume" -c "write $(byte) $(place) 4096" -c "write $(byte) $(($(place) + 4096)) 8192" -c flush
	echo "durable $n"
	n=$((n + 1))
done
echo "cached $(fincore --noheadings --output=PAGES moved)"
exec 9>&-
wait
echo "all ended"
[ -n "$LAST" ] || sleep 1000

for n in $(seq 1 "$MOST"); do
	use kept -c "write $(byte) $(place) 12288"
done
cmp kept moved && echo "every byte is right"
# The mark may take a block.
[ "$(stat -c %b image)" -gt 8 ] || echo "the source is empty"
