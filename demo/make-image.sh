#!/usr/bin/env bash
# make-image.sh IMAGE MIB SUMS - makes a raw ext4 image of about MIB mebibytes of
# real files of this system, and lists their SHA-256 sums, taken from the originals,
# in SUMS, with names relative to the root of the image. Needs root.
set -euo pipefail

if [[ $# -ne 3 ]]; then
	echo "usage: make-image.sh IMAGE MIB SUMS" >&2
	exit 2
fi
image=$1 wanted_bytes=$(($2 << 20)) sums=$(realpath -m "$3")
export LC_ALL=C

work=$(mktemp -d "${TMPDIR:-/var/tmp}/decant-image.XXXXXX")
cleanup() {
	if mountpoint -q "$work/mnt"; then umount "$work/mnt"; fi
	rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM
mkdir "$work/mnt"

# The same files in the same order on every run: by name, until there are enough.
# No line below has to cope with a line break in a name.
roots=()
for dir in /usr/share /usr/lib /usr/include /usr/bin /usr/local /opt; do
	[[ -d $dir ]] && roots+=("$dir")
done
find "${roots[@]}" -xdev -type f -size +0 -size -32M ! -name $'*\n*' ! -path $'*\n*' -printf '%s %P %H\n' |
	awk '{ size = $1; root = $NF; sub(/^[0-9]+ /, ""); sub(/ [^ ]*$/, ""); print root "/" $0 "\t" size }' |
	sort |
	awk -F'\t' -v wanted="$wanted_bytes" '
		{ blocks = int(($2 + 4095) / 4096) * 4096 }
		total + blocks <= wanted { total += blocks; print substr($1, 2) }' >"$work/list"

files=$(wc -l <"$work/list")
(cd / && xargs -d '\n' -a "$work/list" sha256sum --) >"$sums"
read -r data_bytes directories < <(cd / && xargs -d '\n' -a "$work/list" stat -c '%s %n' -- |
	awk '{ total += int(($1 + 4095) / 4096) * 4096; sub(/^[0-9]+ /, ""); sub(/\/[^\/]*$/, ""); dirs[$0] }
		END { n = 0; for (d in dirs) n++; printf "%.0f %d\n", total, n }')
if ((data_bytes < wanted_bytes * 9 / 10)); then
	echo "found only $((data_bytes >> 20)) MiB of files below ${roots[*]}, wanted $((wanted_bytes >> 20)) MiB" >&2
	exit 1
fi

# Room for the files, their directories and inodes, and a journal; little more, so
# that the image is full of data.
inodes=$((files + 3 * directories + 1024))
image_bytes=$(((data_bytes + 2 * directories * 4096 + inodes * 256) * 103 / 100 + (32 << 20)))
truncate -s $((image_bytes >> 20))M "$image"
mkfs.ext4 -q -F -m 0 -N "$inodes" -J size=16 -E lazy_itable_init=0,lazy_journal_init=0,nodiscard "$image"
mount -o loop "$image" "$work/mnt"
tar -C / --no-recursion --hard-dereference --verbatim-files-from -T "$work/list" -cf - |
	tar -C "$work/mnt" --numeric-owner -xpf -
umount "$work/mnt"
sync "$image"
