# Sourced, with a number: lets what is started from here have so many open files, as far as the system allows.
# shellcheck shell=bash
if [[ $(ulimit -Sn) != unlimited ]] && (($(ulimit -Sn) < $1)); then
  ulimit -Sn "$1" 2>/dev/null || echo "note: open files are limited to $(ulimit -Sn); $1 would be needed" >&2
fi
