#!/bin/sh
# After the removal. Journals stay, also in a purge: they alone know which end of an
# unfinished migration holds which bytes.
set -e

if [ -z "${DPKG_ROOT:-}" ] && [ -d /run/systemd/system ]; then
	systemctl daemon-reload || true
fi
