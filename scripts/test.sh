#!/usr/bin/env bash
# All tests. ROOFTOP_STRICT makes a missing tool a failure instead of a skipped test.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/web.sh tests/browser tests/cache-tests tests/playlists
CHROMIUM=$(scripts/chromium.sh) || { echo "no Chromium found: run scripts/deps.sh test" >&2; exit 1; }
export CHROMIUM ROOFTOP_STRICT=1
# Two thousand viewers, both ends in one process.
. scripts/descriptors.sh 8192

echo "== the watch page's rules, and the lint of MPDs"
node --test web/test/*.test.mjs tests/browser/*.test.mjs
echo "== the workspace"
# Most of them wait for real time to pass. Those that keep the machine busy take turns (tests/e2e/kit.rs).
export RUST_TEST_THREADS=${RUST_TEST_THREADS:-$((3 * $(nproc)))}
cargo test --workspace --locked -- --show-output
