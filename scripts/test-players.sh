#!/usr/bin/env bash
# The long versions of the stories about players: every playlist of ten minutes, Shaka and hls.js for five.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/web.sh tests/browser tests/playlists
CHROMIUM=$(scripts/chromium.sh) || { echo "no Chromium found: run scripts/deps.sh test" >&2; exit 1; }
export CHROMIUM ROOFTOP_STRICT=1
. scripts/descriptors.sh 8192

export ROOFTOP_LINT_SECONDS=${ROOFTOP_LINT_SECONDS:-600} ROOFTOP_PLAYERS_SECONDS=${ROOFTOP_PLAYERS_SECONDS:-300}
cargo test --workspace --locked --test e2e -- --show-output lints:: shaka::
