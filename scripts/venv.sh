#!/usr/bin/env bash
# Installs moto's S3 server, which the tests of the archive talk to, below target/; nothing is done where it is there.
set -euo pipefail
cd "$(dirname "$0")/.."

wanted=tests/moto/requirements.txt there=target/tools/moto
if ! cmp -s "$wanted" "$there/requirements.txt"; then
  rm -rf "$there"
  mkdir -p target/tools
  python3 -m venv "$there"
  "$there/bin/pip" install -q --disable-pip-version-check -r "$wanted"
  cp "$wanted" "$there/requirements.txt"
fi
