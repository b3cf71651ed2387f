#!/usr/bin/env bash
# Builds target/debian/rooftop_*.deb: the release binary, its man pages and completions, the systemd unit, a configuration.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v dpkg-shlibdeps >/dev/null; then
  echo "dpkg-shlibdeps is missing, which finds the packages that the binary needs: apt install dpkg-dev" >&2
  exit 1
fi
tools=target/tools/cargo-deb
if ! PATH=$tools/bin:$PATH command -v cargo-deb >/dev/null; then
  cargo install --locked --root "$tools" cargo-deb
fi

# Cargo.toml takes them from there.
made=target/package
rm -rf "$made"
mkdir -p "$made"
rooftop=target/release/rooftop
"$rooftop" man "$made/man"
"$rooftop" completions bash >"$made/rooftop.bash"
"$rooftop" completions zsh >"$made/_rooftop"
"$rooftop" completions fish >"$made/rooftop.fish"

PATH=$tools/bin:$PATH cargo deb --no-build
