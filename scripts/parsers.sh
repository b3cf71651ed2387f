#!/usr/bin/env bash
# Installs parsers of manifests that are not ours, below target/; nothing is done where they are there.
set -euo pipefail
cd "$(dirname "$0")/.."

wanted=tests/parsers/requirements.txt there=target/tools/parsers
if ! cmp -s "$wanted" "$there/requirements.txt"; then
  rm -rf "$there"
  mkdir -p target/tools
  python3 -m venv "$there"
  "$there/bin/pip" install -q --disable-pip-version-check -r "$wanted"
  cp "$wanted" "$there/requirements.txt"
fi
