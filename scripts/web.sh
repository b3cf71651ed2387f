#!/usr/bin/env bash
# Installs the packages of the folders given exactly as their lock files say, where the lock is newer than what is installed.
set -euo pipefail
cd "$(dirname "$0")/.."

for folder in "$@"; do
  # npm writes this file last, so it stands for a finished installation.
  installed="$folder/node_modules/.package-lock.json"
  if [[ -f $installed && ! $folder/package-lock.json -nt $installed && ! $folder/package.json -nt $installed ]]; then
    continue
  fi
  echo "installing the packages of $folder"
  # The lock holds integrity hashes, no addresses; no package needs a script to run at installation.
  (cd "$folder" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error)
  touch "$installed"
done
