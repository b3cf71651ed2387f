#!/usr/bin/env bash
# What a change must pass besides its tests.
set -euo pipefail
cd "$(dirname "$0")/.."

if grep -nE '"resolved"|://' web/package-lock.json tests/browser/package-lock.json tests/cache-tests/package-lock.json \
  tests/playlists/package-lock.json; then
  echo "a lock file records addresses: run scripts/lock.sh" >&2
  exit 1
fi
if command -v shellcheck >/dev/null; then
  shellcheck scripts/*.sh .ci/run
fi
cargo fmt --all --check
cargo clippy --workspace --all-targets --locked -- -D warnings
if command -v cargo-deny >/dev/null; then
  cargo deny check
fi
