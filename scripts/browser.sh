#!/usr/bin/env bash
# Finds a Chromium for the browser tests; installs Debian's where there is none and it may. Never skips.
set -euo pipefail
for name in "${CHROMIUM:-}" chromium chromium-browser google-chrome google-chrome-stable; do
  [ -n "$name" ] && command -v "$name" >/dev/null && exit 0
done
sudo=""
[ "$(id -u)" = 0 ] || sudo="sudo -n"
if command -v apt-get >/dev/null; then
  echo "browser: installing Chromium for the browser tests"
  $sudo apt-get update -qq && DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends chromium >/dev/null \
    && command -v chromium >/dev/null && exit 0
fi
echo "browser: no Chromium found and none could be installed. Install Chromium or Chrome, or set CHROMIUM=/path/to/it." >&2
exit 1
