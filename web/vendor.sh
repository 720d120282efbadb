#!/usr/bin/env bash
# vendor.sh - fetches the libraries of the page from npm into static/vendor, in the
# versions below. Two things are changed: the modules of preact find one another by a
# path, since browsers know no package names, and no source map is named.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/static/vendor"

preact=11.2.0
uplot=1.6.32
htm=3.1.1

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for package in "preact@$preact" "uplot@$uplot" "htm@$htm"; do
	file=$(cd "$work" && npm pack --silent "$package")
	mkdir "$work/${package%@*}"
	tar -xzf "$work/$file" -C "$work/${package%@*}" --strip-components=1
done

# take FILE TO - copies a file of a library to where it is served from.
take() {
	install -D -m 644 "$work/$1" "$2"
}
take preact/LICENSE preact/LICENSE
take preact/dist/preact.mjs preact/preact.mjs
take preact/hooks/dist/hooks.mjs preact/hooks.mjs
take uplot/LICENSE uplot/LICENSE
take uplot/dist/uPlot.esm.js uplot/uPlot.mjs
take uplot/dist/uPlot.min.css uplot/uPlot.css
take htm/LICENSE htm/LICENSE
take htm/dist/htm.mjs htm/htm.mjs
sed -i -e '/^\/\/# sourceMappingURL/d' -e 's|from"preact"|from"./preact.mjs"|' preact/*.mjs
