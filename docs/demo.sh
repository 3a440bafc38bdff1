#!/usr/bin/env bash
# `make demo`: train -> export -> verify -> serve -> classify on the built-in data, on a CPU.
# Everything it makes lies in runs/demo; run again, it goes on from what is there.
set -euo pipefail
run=runs/demo bundle=runs/demo/best.bundle

show() { printf '\n\033[1m$ %s\033[0m\n' "$*"; }
step() { show "$@"; "$@"; }

step irv2-train --setting 2 --out "$run"
# best.pt was chosen on the images that the gate uses: its error is a little too good to be true.
show irv2-export "$run/best.pt" --trt --out "$bundle"
table=$(irv2-export "$run/best.pt" --trt --out "$bundle")
step irv2 verify "$bundle"
step irv2 inspect "$bundle"

show irv2-serve "$bundle" --listen 127.0.0.1:0 "&"
log=$(mktemp)
irv2-serve "$bundle" --listen 127.0.0.1:0 --grace-s 0 2> >(tee "$log" >&2) &
server=$!
trap 'kill -TERM $server 2>/dev/null || true; wait $server || true; rm -f "$log"' EXIT
until grep -q '^ready ' "$log"; do
    kill -0 "$server" 2>/dev/null || exit 1 # it has said why
    sleep 0.1
done
address=$(sed -n 's/^ready \([^ ]*\).*/\1/p' "$log")

step irv2 verify "$bundle" --server "$address"
[ -d "$run/digits" ] || step irv2 data sample --out "$run/digits"
printf '\nTraining curves: %s\n\n%s\n' "$run/curves.png" "$table"
step irv2-classify "$run"/digits/val/{0..9}/0001.png --server "$address" --top-k 3
