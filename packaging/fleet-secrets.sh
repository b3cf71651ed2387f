#!/usr/bin/env bash
# What the nodes of a fleet share and show one another: fleet-secrets.sh FOLDER NODE[=HOST[,HOST…]]…
#
# Makes in FOLDER, with openssl: a CA (ca.pem, ca.key), for each node a certificate that it signed (NODE.pem, NODE.key) for the
# HOSTs (names or addresses; NODE if none is given) and localhost, the key of stream keys (token.key), and credentials for an
# S3 server of the fleet's own (s3: id and secret, one a line; s3.id and s3.secret, one each). What is there stays, but a
# certificate that ends within 30 days is made anew: run it again to renew, and nodes take them by themselves.
# ca.key signs anything: keep it off the nodes.
set -euo pipefail
umask 077

if (($# < 2)); then
  echo "usage: fleet-secrets.sh FOLDER NODE[=HOST[,HOST…]]…" >&2
  exit 2
fi
folder=$1
shift
days=390
renew_seconds=$((30 * 24 * 3600))

main() {
  mkdir -p "$folder"
  cd "$folder"
  [[ -f ca.key ]] || ca
  local node
  for node in "$@"; do
    leaf "${node%%=*}" "${node#*=}"
  done
  [[ -f token.key ]] || openssl rand -hex 32 >token.key
  if [[ ! -f s3 ]]; then
    openssl rand -hex 10 | tr -d '\n' >s3.id
    openssl rand -hex 20 | tr -d '\n' >s3.secret
    printf '%s\n%s\n' "$(<s3.id)" "$(<s3.secret)" >s3
  fi
}

ca() {
  quietly openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.pem -days 3650 \
    -subj "/CN=Rooftop fleet CA" -addext basicConstraints=critical,CA:TRUE,pathlen:0 \
    -addext keyUsage=critical,keyCertSign,cRLSign
  chmod 644 ca.pem
}

# What a command says is shown if it fails.
quietly() {
  local said
  said=$("$@" 2>&1) || { echo "$said" >&2; exit 1; }
}

# leaf NODE HOST[,HOST…]
leaf() {
  if [[ ! $1 =~ ^[A-Za-z0-9_.-]+$ ]]; then
    echo "node ${1@Q}: names have A-Z a-z 0-9 - _ . only" >&2
    exit 2
  fi
  if [[ -f $1.pem ]] && openssl x509 -in "$1.pem" -noout -checkend "$renew_seconds" >/dev/null; then
    return
  fi
  local names=DNS:localhost,IP:127.0.0.1 host hosts
  IFS=, read -ra hosts <<<"$2"
  for host in "${hosts[@]}"; do
    # An address, or a name.
    if [[ $host =~ ^[0-9.]+$ || $host == *:* ]]; then names+=,IP:$host; else names+=,DNS:$host; fi
  done
  quietly openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$1.key" -out "$1.pem.part" -days "$days" \
    -CA ca.pem -CAkey ca.key -subj "/CN=$1" -addext "subjectAltName=$names" \
    -addext basicConstraints=critical,CA:FALSE -addext keyUsage=critical,digitalSignature \
    -addext extendedKeyUsage=serverAuth,clientAuth
  chmod 644 "$1.pem.part"
  mv "$1.pem.part" "$1.pem"
  echo "$1: a certificate for ${names//,/, }"
}

main "$@"
