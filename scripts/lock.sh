#!/usr/bin/env bash
# Renews the lock files after a change of versions in a package.json. They hold versions and integrity hashes, no addresses.
set -euo pipefail
cd "$(dirname "$0")/.."

for folder in web tests/browser tests/cache-tests tests/playlists; do
  rm -f "$folder/package-lock.json"
  (cd "$folder" && npm install --package-lock-only --ignore-scripts --no-audit --no-fund --loglevel=error)
  node -e '
    const fs = require("fs");
    const lock = JSON.parse(fs.readFileSync(process.argv[1], "utf8"));
    for (const entry of Object.values(lock.packages)) delete entry.funding;
    fs.writeFileSync(process.argv[1], JSON.stringify(lock, null, 2) + "\n");
  ' "$folder/package-lock.json"
done
