#!/usr/bin/env bash
# Runs the release binary with every role in one process and, unless `run.sh 0`, a demo broadcast through the whole path.
# Ctrl-C (or SIGTERM) drains and ends everything that was started here.
set -euo pipefail
cd "$(dirname "$0")/.."

demo=${1:-1}
config=configs/all-in-one.toml
admin_host=127.0.0.1
admin_port=9090
ca=run/tls/ca.pem
# The first start makes certificates; later ones take a fraction of a second.
ready_seconds=30
# Longer than the drain deadline of the configuration.
drain_seconds=45

server=
broadcast=

main() {
  trap 'stop; exit 0' INT TERM HUP
  trap stop EXIT
  # Whoever reads our output may leave before us; what was started must be ended all the same.
  trap '' PIPE

  # A session of its own: Ctrl-C in a terminal reaches this script alone, which then ends things in order.
  # Its stdout is one line of addresses for programs; the log goes to stderr.
  setsid target/release/rooftop serve --config "$config" >/dev/null &
  server=$!
  await_ready

  local demo_key own_key
  if [[ $demo != 0 ]]; then
    demo_key=$(target/release/rooftop stream create demo --config "$config" --json)
    own_key=$(target/release/rooftop stream create mine --config "$config" --json)
    setsid scripts/demo.sh "$(field "$demo_key" publish rtmps)" "$ca" &
    broadcast=$!
    announce "$demo_key" "$own_key"
  else
    own_key=$(target/release/rooftop stream create demo --config "$config" --json)
    announce "$own_key" "$own_key"
  fi

  watch
}

# Asks /readyz until the server says that it is ready, has died, or has had its time.
await_ready() {
  local deadline=$((SECONDS + ready_seconds)) status
  while ((SECONDS < deadline)); do
    alive "$server" || { report_end "$server"; exit 1; }
    status=$(ready_status 2>/dev/null || true)
    [[ $status == *' 200 '* ]] && return
    sleep 0.1
  done
  echo "the server was not ready within $ready_seconds s" >&2
  exit 1
}

# The status line of GET /readyz; plain bash, since a fresh system has no curl.
ready_status() (
  exec 3<>"/dev/tcp/$admin_host/$admin_port" || exit 1
  printf 'GET /readyz HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n' "$admin_host:$admin_port" >&3
  IFS= read -r -t 2 line <&3
  echo "${line%$'\r'} "
)

# Waits until the server ends. The demo may end before it, when its broadcast is taken over.
watch() {
  while alive "$server"; do
    local ended=
    wait -n -p ended "$server" ${broadcast:+"$broadcast"} || true
    if [[ -n $broadcast && $ended == "$broadcast" ]]; then
      broadcast=
      echo "the demo broadcast has ended; the server goes on"
    elif [[ $ended == "$server" ]]; then
      break
    fi
  done
  report_end "$server"
  exit 1
}

# Ends what runs: the broadcast first, so that the server sees a broadcaster who leaves properly.
stop() {
  trap '' INT TERM HUP
  trap - EXIT
  if [[ -n $broadcast ]]; then
    end "$broadcast" 5
    broadcast=
  fi
  if [[ -n $server ]] && alive "$server"; then
    echo "draining …" || true
    end "$server" "$drain_seconds"
    echo "stopped" || true
  fi
}

# SIGTERM, then patience, then SIGKILL for whatever is left of the session that $1 leads.
end() {
  local pid=$1 deadline=$((SECONDS + $2))
  kill -TERM "$pid" 2>/dev/null || true
  while alive "$pid" && ((SECONDS < deadline)); do sleep 0.1; done
  if alive "$pid"; then
    echo "process $pid did not end within $2 s: killed" >&2
    kill -KILL -- "-$pid" 2>/dev/null || true
  fi
  wait "$pid" 2>/dev/null || true
}

alive() {
  kill -0 "$1" 2>/dev/null
}

report_end() {
  local code=0
  wait "$1" || code=$?
  echo "the server has ended by itself (exit code $code)" >&2
}

# field JSON KEY [PREFIX]: the value, or the first of a list of values that begins with PREFIX.
field() {
  node -e '
    const [json, key, prefix = ""] = process.argv.slice(1);
    const value = [].concat(JSON.parse(json)[key]).find((value) => value.startsWith(prefix));
    if (value === undefined) throw new Error(`stream create gave no ${key} ${prefix}`);
    console.log(value);
  ' "$@"
}

# announce WATCHED OWN: where to look, and where to broadcast to.
announce() {
  node -e '
    const [watched, own, demo] = process.argv.slice(1, 3).map((json) => JSON.parse(json)).concat(process.argv[3] !== "0");
    const list = (value) => [].concat(value ?? []);
    const lines = ["", "  Rooftop is running." + (demo ? " The demo broadcast is a clock: compare it with yours." : ""), ""];
    const row = (name, values) => list(values).forEach((value, i) => lines.push(`  ${(i ? "" : name).padEnd(12)}${value}`));
    row("Watch", watched.watch);
    row("HLS", watched.hls);
    row("DASH", watched.dash);
    lines.push("", `  Broadcast yourself to the stream "${own.stream}"`);
    row("OBS server", own.ingest);
    row("Stream key", own.key);
    row("ffmpeg", `ffmpeg -re -i FILE -c:v libx264 -tune zerolatency -g 60 -c:a aac -f flv "${list(own.publish)[0]}"`);
    if (demo) row("Watch it", own.watch);
    lines.push("", "  https shows a development certificate; a browser that trusts run/tls/ca.pem accepts it.");
    lines.push("  Ctrl-C ends everything.", "");
    console.log(lines.join("\n"));
  ' "$1" "$2" "$demo"
}

main
