#!/usr/bin/env bash
# demo.sh - moves a real file system image on a file system that has no room for a
# second copy of it, and compares every file afterwards. Needs root, for mounts.
# DEMO_MIB is the size of the image in MiB. Leaves nothing behind.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

image_mib=${DEMO_MIB:-600}
room_mib=$((image_mib / 3 < 200 ? image_mib / 3 : 200))
work=$(mktemp -d "${TMPDIR:-/var/tmp}/decant-demo.XXXXXX")
small=$work/small       # the small file system
result=$work/result     # the result, mounted read-only
state=$work/state       # journals and the list of pools
migrate=$PWD/bin/migrate
thinctl=$PWD/bin/thinctl

cleanup() {
	if [[ -n ${running:-} ]]; then
		kill "$running" 2>/dev/null || true # it may have ended just now
		wait "$running" || true
	fi
	for mnt in "$result" "$small"; do
		if mountpoint -q "$mnt"; then umount "$mnt"; fi
	done
	rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

say() { printf '\n== %s\n' "$*"; }
fail() {
	echo "demo: $*" >&2
	exit 1
}
mib() { echo "$((($1 + (1 << 19)) >> 20)) MiB"; }
most() { printf '%s\n' "$@" | sort -n | tail -n 1; }
allocated_bytes() { if [[ -e $1 ]]; then echo $(($(stat -c '%b * %B' "$1"))); else echo 0; fi; }
free_bytes() { df --output=avail -B1 "$small" | tail -n 1; }
show() {
	df -h --output=size,used,avail,pcent,target "$small" | sed 's/^/   /'
	for f in "$@"; do
		[[ ! -e $f ]] || printf '   %-34s %10s of %s in use\n' "${f#"$work"/}" "$(mib "$(allocated_bytes "$f")")" "$(mib "$(stat -c %s "$f")")"
	done
}

# move SOURCE DESTINATION FILE FLAGS... - runs migrate and shows, measured from
# outside, how FILE fills while SOURCE empties. Sets lowest_bytes, the least free
# space that was seen, and done, the last event.
move() {
	local source=$1 destination=$2 file=$3 last='' line free
	shift 3
	echo "   \$ migrate $* ${source#"$work"/} ${destination#"$work"/}"
	"$migrate" "$@" --state-dir "$state" --progress=json "$source" "$destination" >"$work/events" &
	running=$!
	lowest_bytes=$(free_bytes)
	while kill -0 "$running" 2>/dev/null; do
		free=$(free_bytes)
		((free >= lowest_bytes)) || lowest_bytes=$free
		line=$(printf 'source %8s   destination %8s   free %8s' "$(mib "$(allocated_bytes "$source")")" \
			"$(mib "$(allocated_bytes "$file")")" "$(mib "$free")")
		[[ $line == "$last" ]] || echo "   $line"
		last=$line
		sleep 0.25
	done
	wait "$running" || fail "migrate ended with code $?: $(tail -n 1 "$work/events")"
	running=''
	done=$(grep '"event":"done"' "$work/events") || fail "migrate has not said that it is done"
}
# counter NAME - a number of the last event.
counter() { sed -n "s/.*\"$1\":\([0-9]*\).*/\1/p" <<<"$done"; }

# compare FILE - mounts the image in FILE and compares every file with its original.
compare() {
	e2fsck -fn "$1" >"$work/fsck" 2>&1 || fail "e2fsck finds faults: $(cat "$work/fsck")"
	mount -o ro,loop "$1" "$result"
	(cd "$result" && sha256sum --check --quiet --strict "$work/sums") || fail "files differ in $1"
	[[ $(find "$result" -xdev -type f | wc -l) -eq $files ]] || fail "$1 does not hold the $files files that were put in"
	umount "$result"
	[[ $(sha256sum <"$1") == "$whole" ]] || fail "$1 is not the image that was moved, byte for byte"
	echo "   $files files and the $(mib "$(stat -c %s "$1")") of the image as a whole are what they were"
}

mkdir "$small" "$result" "$state"
say "An ext4 image of real files from this system"
demo/make-image.sh "$work/disk.img" "$image_mib" "$work/sums"
files=$(wc -l <"$work/sums")
whole=$(sha256sum <"$work/disk.img")
image_bytes=$(stat -c %s "$work/disk.img")
echo "   $files files, image of $(mib "$image_bytes")"

say "A file system with room for it, but not for it twice"
truncate -s $(((image_bytes >> 20) + room_mib + 16))M "$work/small.img"
mkfs.ext4 -q -F -m 0 -N 128 -J size=8 "$work/small.img"
mount -o loop "$work/small.img" "$small"
cp --sparse=always "$work/disk.img" "$small/disk.img"
rm "$work/disk.img"
sync -f "$small"
show "$small/disk.img"
before_bytes=$(allocated_bytes "$small/disk.img")
room_bytes=$(free_bytes)
echo "   \$ cp small/disk.img small/moved.img"
if cp "$small/disk.img" "$small/moved.img" 2>"$work/cp"; then fail "there was room for a copy after all"; fi
sed "s|$work/||g; s/^/   /" "$work/cp"
rm "$small/moved.img"
sync -f "$small"

say "Moved to a new file beside it"
start_bytes=$(free_bytes)
move "$small/disk.img" "$small/moved.img" "$small/moved.img" --discard-src --verify
extra_bytes=$(most "$((start_bytes - lowest_bytes))" "$(counter peak_extra_bytes)")
show "$small/disk.img" "$small/moved.img"
freed_bytes=$((before_bytes - $(allocated_bytes "$small/disk.img")))
((freed_bytes >= before_bytes - (1 << 20))) || fail "the source still takes $(mib $((before_bytes - freed_bytes)))"
first_verified_bytes=$(counter bytes_verified)
compare "$small/moved.img"

say "Moved on into a volume of a thin pool, and the emptied file removed"
rm "$small/disk.img"
pool_size=$(((image_bytes >> 20) + 256))MiB # a limit; the pool takes what its volumes hold
echo "   \$ thinctl pool create demo --dir small/pool --size $pool_size"
"$thinctl" --state-dir "$state" pool create demo --dir "$small/pool" --size "$pool_size" >/dev/null
start_bytes=$(free_bytes)
move "$small/moved.img" demo/disk "$small/pool/disk.img" --discard-src --verify --remove-src
extra_bytes=$(most "$extra_bytes" "$((start_bytes - lowest_bytes))" "$(counter peak_extra_bytes)")
show "$small/pool/disk.img"
[[ ! -e $small/moved.img ]] || fail "the source file is still there"
freed_bytes=$((freed_bytes + before_bytes))
verified_bytes=$((first_verified_bytes + $(counter bytes_verified)))
compare "$small/pool/disk.img"

say "Done"
echo "moved an image of $(mib "$image_bytes") twice on a file system with $(mib "$room_bytes") free;" \
	"freed $(mib "$freed_bytes") of sources; took at most $(mib "$extra_bytes") extra;" \
	"verified $(mib "$verified_bytes") past the cache, and all $files files after each move"
