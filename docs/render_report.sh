#!/usr/bin/env bash
# A picture of a run's report: docs/render_report.sh RUN OUT.png [WIDTH HEIGHT]. Needs a headless chromium.
set -euo pipefail

run=$(cd "$1" && pwd)
out=$2
width=${3:-1100}
height=${4:-1400}
browser=$(command -v chromium || command -v chromium-browser || command -v google-chrome) \
    || { echo "no chromium was found; install one" >&2; exit 2; }
profile=$(mktemp -d)
trap 'rm -rf "$profile"' EXIT
timeout 120 "$browser" --headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking \
    --hide-scrollbars --user-data-dir="$profile" --screenshot="$out" --window-size="$width,$height" \
    "file://$run/report.html" >/dev/null 2>&1
test -s "$out"
