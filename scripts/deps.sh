#!/usr/bin/env bash
# Installs the system packages that are missing: `deps.sh` those to build and run, `deps.sh test` those of the tests as well,
# `deps.sh bench` those of the benches.
# Where nothing is missing it changes nothing and asks for nothing.
set -euo pipefail

run_packages=(
  # the compiler and linker that Rust and its C dependencies call
  gcc libc6-dev make pkg-config
  # libav, and what reads its headers at build time
  clang libclang-dev libavcodec-dev libavformat-dev libavutil-dev libswscale-dev
  # what makes the etcd client out of etcd's protocol files at build time
  protobuf-compiler libprotobuf-dev
  # the demo broadcast
  ffmpeg fonts-dejavu-core
)
# Programs rather than packages: other installations of them will do.
run_programs=(node:nodejs npm:npm)
# python3 makes the environment of the S3 server that the archive is tested with.
test_programs=(python3:python3-venv chromium:chromium nginx:nginx-light gst-launch-1.0:gstreamer1.0-tools
  etcd:etcd-server etcdctl:etcd-client systemd-analyze:systemd)
# gstreamer's RTMP sinks and AAC encoder, and its x264.
test_packages=(gstreamer1.0-plugins-bad gstreamer1.0-plugins-good gstreamer1.0-plugins-ugly)
bench_packages=(libnginx-mod-rtmp)
# The hosts of the cluster test bench, and its partitions.
test_packages+=(iproute2 nftables)
bench_programs=(nginx:nginx-light h2load:nghttp2-client wrk:wrk varnishd:varnish h2o:h2o taskset:util-linux)

missing=()
packages=("${run_packages[@]}")
[[ ${1:-} == test ]] && packages+=("${test_packages[@]}")
[[ ${1:-} == bench ]] && packages+=("${bench_packages[@]}")
for package in "${packages[@]}"; do
  [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || missing+=("$package")
done
programs=("${run_programs[@]}")
[[ ${1:-} == test ]] && programs+=("${test_programs[@]}")
[[ ${1:-} == bench ]] && programs+=("${bench_programs[@]}")
for entry in "${programs[@]}"; do
  program=${entry%%:*} package=${entry#*:}
  if [[ $program == chromium ]]; then
    "$(dirname "$0")/chromium.sh" >/dev/null && continue
    # Ubuntu's `chromium` is not a browser but a pointer to a snap; `chromium-browser` installs that snap.
    if grep -qs '^ID=ubuntu' /etc/os-release; then
      echo "Ubuntu has Chromium as a snap only; where snaps do not run, install another build and set CHROMIUM to its path"
      package=chromium-browser
    fi
  fi
  command -v "$program" >/dev/null || missing+=("$package")
done

if ((${#missing[@]})); then
  echo "these system packages are missing and will be installed: ${missing[*]}"
  sudo=()
  if ((EUID != 0)); then
    command -v sudo >/dev/null || { echo "not root and no sudo: install them yourself, then start again" >&2; exit 1; }
    sudo=(sudo)
  fi
  had=" $(for program in nginx varnishd h2o etcd; do command -v "$program" >/dev/null && echo -n "$program "; done || true)"
  "${sudo[@]}" apt-get update -q
  "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}"
  # Only the programs are wanted (tests and benches start them themselves), not the services that their packages start.
  if command -v systemctl >/dev/null; then
    for entry in nginx:nginx varnishd:varnish h2o:h2o etcd:etcd; do
      program=${entry%%:*}
      if [[ $had != *" $program "* ]] && command -v "$program" >/dev/null; then
        "${sudo[@]}" systemctl disable --quiet --now "${entry#*:}" 2>/dev/null || true
      fi
    done
  fi
fi

if [[ ${1:-} == test ]]; then
  "$(dirname "$0")/venv.sh" moto
  "$(dirname "$0")/venv.sh" parsers
fi

version=$(node --version)
major=${version#v}
if ((${major%%.*} < 18)); then
  echo "node $version is too old: Rooftop's web page needs node 18 or later to be built" >&2
  exit 1
fi
