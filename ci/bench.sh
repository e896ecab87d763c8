#!/usr/bin/env bash
# The benchmarks. Arguments go to pytest; compare figures of one run only, on a machine that does nothing else.
source "$(dirname "$0")/common.sh"
ci/setup.sh bench
exec "$VENV/bin/python" -m pytest bench --benchmark-only --benchmark-columns=min,median,ops,rounds --benchmark-sort=min "$@" </dev/null
