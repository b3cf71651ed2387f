#!/usr/bin/env bash
# The long version of the story about sync: `test-sync.sh [SECONDS]`, an hour of media through real encoders as fast as they go, its
# sound copied, then coded anew.
set -euo pipefail
cd "$(dirname "$0")/.."

export ROOFTOP_STRICT=1 ROOFTOP_SYNC_SECONDS=${1:-3600}
# One after another: each has the machine to itself.
cargo test --workspace --release --locked --lib -- --show-output --test-threads 1 sources::sync::
