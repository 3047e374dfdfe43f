#!/usr/bin/env bash
# Creates .venv-peers: everything of .venv, and the libraries that benchmarks compare with. They are needed nowhere else.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -x .venv/bin/python ] || { echo "peers: there is no .venv yet. Run: make setup" >&2; exit 1; }
rm -rf .venv-peers
.venv/bin/python -m venv .venv-peers
site='import sysconfig; print(sysconfig.get_path("purelib"))'
# addsitedir, not the bare path: it heeds the .pth files in there, by which the project itself is installed.
echo "import site; site.addsitedir('$(.venv/bin/python -c "$site")')" >"$(.venv-peers/bin/python -c "$site")/workbench.pth"
.venv-peers/bin/python -m pip --disable-pip-version-check --quiet install --constraint constraints.txt \
  transformer-lens==4.3.0 nnsight==0.8.1 optimum-quanto==0.2.7 hqq==0.2.8.post1
touch .venv-peers/.ready
echo "peers: done"
