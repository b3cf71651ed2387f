#!/usr/bin/env bash
# Prints the path of a Chromium that the browser tests can drive; fails if there is none.
set -euo pipefail

for name in ${CHROMIUM:+"$CHROMIUM"} chromium chromium-browser google-chrome; do
  if path=$(command -v "$name"); then
    echo "$path"
    exit 0
  fi
done
exit 1
