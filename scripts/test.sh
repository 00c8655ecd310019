#!/usr/bin/env bash
# The whole check: style, then tests. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(bash scripts/setup.sh)
# A second opinion for one test; its own requirements pin an old requests and are left out.
"$python" -c 'import torchattacks' 2>/dev/null ||
  "$python" -m pip install --quiet --disable-pip-version-check --no-deps 'torchattacks>=3.5' ||
  echo "torchattacks could not be installed: the test that compares with it is skipped" >&2
"$python" -m ruff check .
"$python" -m ruff format --check .
exec "$python" -m pytest "$@"
