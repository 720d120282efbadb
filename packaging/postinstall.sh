#!/bin/sh
# After an installation or an upgrade, by dpkg or rpm. Where systemd does not run, as in
# an image that is being built, the next boot does the rest. DPKG_ROOT is such an image,
# seen from outside.
set -e

root="${DPKG_ROOT:-}"
if command -v systemd-sysusers >/dev/null; then
	systemd-sysusers ${root:+"--root=$root"} decant.conf || true
elif [ -z "$root" ] && ! getent group decant >/dev/null && command -v groupadd >/dev/null; then
	groupadd --system decant || true
fi
if command -v systemctl >/dev/null; then
	systemctl ${root:+"--root=$root"} enable hydrated.socket hydrated.service || true
fi
if [ -z "$root" ] && [ -d /run/systemd/system ]; then
	systemd-tmpfiles --create decant.conf || true
	systemctl daemon-reload || true
	systemctl start hydrated.socket || true
	# Migrations go on over an upgrade: the service commits when it is restarted.
	systemctl try-restart hydrated.service || true
fi
