#!/usr/bin/env bash
# Fuzzes everything that reads what strangers send, MINUTES (default 5) for all targets together. Runs on stable Rust:
# without a sanitizer, which the parsers (all of them safe Rust) can do without.
# What it finds new goes to fuzz/found; what is worth keeping is merged into fuzz/corpus by hand (libFuzzer's -merge=1).
set -euo pipefail
cd "$(dirname "$0")/../fuzz"

command -v cargo-fuzz >/dev/null || cargo install --locked cargo-fuzz --version 0.13.2
targets=(session broadcast chunk amf flv records)
seconds=$((${1:-5} * 60 / ${#targets[@]}))
for target in "${targets[@]}"; do
  echo "== $target, $seconds s"
  seeds=("corpus/$target")
  [[ $target == session ]] && seeds+=(../ingest/testdata)
  mkdir -p "found/$target"
  cargo fuzz run -s none "$target" "found/$target" "${seeds[@]}" -- \
    -max_total_time="$seconds" -max_len=32768 -rss_limit_mb=1024 -malloc_limit_mb=64 -timeout=10 -print_final_stats=1
done
