#!/usr/bin/env bash
# venv.sh NAME: installs what tests/NAME/requirements.txt lists in target/tools/NAME; nothing is done where it is there.
#   moto     S3's server, which the tests of the archive talk to
#   parsers  of manifests, that are not ours
set -euo pipefail
cd "$(dirname "$0")/.."

wanted=tests/$1/requirements.txt there=target/tools/$1
if ! cmp -s "$wanted" "$there/requirements.txt"; then
  rm -rf "$there"
  mkdir -p target/tools
  python3 -m venv "$there"
  "$there/bin/pip" install -q --disable-pip-version-check -r "$wanted"
  cp "$wanted" "$there/requirements.txt"
fi
