#!/usr/bin/env bash
# The cluster test bench: a fleet in network namespaces, and one thing after another goes wrong. `test-cluster.sh [NAMES]`,
# with commas between them; all if none is given. As root. ROOFTOP_STRICT makes a machine that cannot a failure.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/web.sh tests/browser
CHROMIUM=$(scripts/chromium.sh) || { echo "no Chromium found: run scripts/deps.sh test" >&2; exit 1; }
export CHROMIUM ROOFTOP_CLUSTER=${1:-all}
# With all of the workspace, as `make test` builds it: of the root package alone it would be built once more.
cargo test --workspace --locked --test cluster
