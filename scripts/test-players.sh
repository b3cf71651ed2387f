#!/usr/bin/env bash
# The long versions of the stories about players: every playlist of ten minutes; hls.js, dash.js and Shaka, low-latency and plain,
# for five minutes and through what may happen to a broadcast. About half an hour.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/web.sh web tests/browser tests/playlists
CHROMIUM=$(scripts/chromium.sh) || { echo "no Chromium found: run scripts/deps.sh test" >&2; exit 1; }
export CHROMIUM ROOFTOP_STRICT=1
. scripts/descriptors.sh 8192

export ROOFTOP_LINT_SECONDS=${ROOFTOP_LINT_SECONDS:-600} ROOFTOP_PLAYERS_SECONDS=${ROOFTOP_PLAYERS_SECONDS:-300}
# One after another: each has the machine to itself.
cargo test --workspace --locked --test e2e -- --show-output --include-ignored --test-threads 1 lints:: endurance::
