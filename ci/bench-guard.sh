#!/usr/bin/env bash
# Has the code become slower? A few ratios and instruction counts against bench/bounds.toml. Arguments go to bench/guard.py.
source "$(dirname "$0")/common.sh"
ci/setup.sh guard
PYTHONPATH=bench:. exec "$VENV/bin/python" bench/guard.py "$@" </dev/null
