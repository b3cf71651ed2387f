#!/usr/bin/env bash
# All benches: a table on stdout and target/bench/results.json.
set -euo pipefail
cd "$(dirname "$0")/.."

mkdir -p target/bench
cargo bench --locked --package rooftop --bench '*'
