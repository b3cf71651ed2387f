#!/usr/bin/env bash
# All benches: a table on stdout and target/bench/results.json. `bench.sh edge_hits/plain idle` runs some of them.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/deps.sh bench
# The scenario `glass` looks through a browser.
scripts/web.sh tests/browser
CHROMIUM=$(scripts/chromium.sh) || { echo "no Chromium found: run scripts/deps.sh test" >&2; exit 1; }
export CHROMIUM
# Ten thousand connections from one process, and some.
. scripts/descriptors.sh 16384
cargo bench --locked --package rooftop --bench rooftop -- "$@"
