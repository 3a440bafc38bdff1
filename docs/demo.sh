#!/usr/bin/env bash
# `make demo`: train -> export -> verify -> serve -> classify on the built-in data, on a CPU.
# Everything it makes lies in runs/demo; run again, it goes on from what is there.
set -euo pipefail
run=runs/demo bundle=runs/demo/best.bundle

step() { printf '\n\033[1m$ %s\033[0m\n' "$*"; "$@"; }

step irv2-train --setting 2 --out "$run"
step irv2-export "$run/best.pt" --out "$bundle"
step irv2 verify "$bundle"
step irv2 inspect "$bundle"

printf '\n\033[1m$ irv2-serve %s --listen 127.0.0.1:0 &\033[0m\n' "$bundle"
log=$(mktemp)
irv2-serve "$bundle" --listen 127.0.0.1:0 2> >(tee "$log" >&2) &
server=$!
trap 'kill -TERM $server 2>/dev/null || true; wait $server || true; rm -f "$log"' EXIT
until grep -q '^ready ' "$log"; do
    kill -0 "$server" 2>/dev/null || exit 1 # it has said why
    sleep 0.1
done
address=$(sed -n 's/^ready \([^ ]*\).*/\1/p' "$log")

[ -d "$run/digits" ] || step irv2 data sample --out "$run/digits"
step irv2-classify "$run"/digits/val/{3,7}/000{0,1}.png --server "$address" --top-k 3
step irv2 verify "$bundle" --server "$address"

printf '\nTraining curves: %s\nParity report:   %s\n' "$run/curves.png" "$bundle/parity.md"
