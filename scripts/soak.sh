#!/usr/bin/env bash
# Live traffic for a while, then a look at what is left: `soak.sh [SECONDS [VIEWERS]]`, ten minutes with a thousand players.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/deps.sh
. scripts/descriptors.sh 4096
export ROOFTOP_SOAK_SECONDS=${1:-600} ROOFTOP_SOAK_VIEWERS=${2:-1000}
cargo test --release --locked --package rooftop --test e2e soak:: -- --nocapture
