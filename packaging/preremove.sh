#!/bin/sh
# Before the removal, by dpkg ("remove") or rpm (0 left); not before an upgrade.
set -e

root="${DPKG_ROOT:-}"
case "${1:-}" in
remove | 0)
	if [ -z "$root" ] && [ -d /run/systemd/system ]; then
		systemctl stop hydrated.service hydrated.socket || true
	fi
	if command -v systemctl >/dev/null; then
		systemctl ${root:+"--root=$root"} disable hydrated.service hydrated.socket || true
	fi
	;;
esac
