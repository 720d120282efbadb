#!/usr/bin/env bash
# stage - puts under dist what a package holds and a build does not make: programs without
# their symbols, compressed man pages, and completions. The same input gives the same bytes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

rm -rf dist/bin dist/man dist/completions
mkdir -p dist/bin dist/man dist/completions/{bash,zsh,fish}
for page in man/*.[18]; do
	gzip -9n <"$page" >"dist/man/${page##*/}.gz"
done
for program in migrate thinctl hydrated; do
	strip -o "dist/bin/$program" "bin/$program"
	"bin/$program" completion bash >"dist/completions/bash/$program"
	"bin/$program" completion zsh >"dist/completions/zsh/_$program"
	"bin/$program" completion fish >"dist/completions/fish/$program.fish"
done
