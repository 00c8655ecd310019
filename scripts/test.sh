#!/usr/bin/env bash
# The whole check: style, then tests. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(bash scripts/setup.sh)
"$python" -m ruff check .
"$python" -m ruff format --check .
exec "$python" -m pytest "$@"
