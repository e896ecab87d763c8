#!/usr/bin/env bash
# The benchmarks, and docs/benchmarks.md from them. Arguments go to pytest: a part of the benchmarks, which writes no page.
source "$(dirname "$0")/common.sh"
ci/setup.sh bench
mkdir -p build
whole=$#
[ $# -gt 0 ] && [ "${1#-}" = "$1" ] || set -- bench "$@" # a path among the arguments comes first
"$VENV/bin/python" -m pytest --benchmark-only --benchmark-columns=min,median,ops,rounds --benchmark-sort=min \
    --benchmark-json=build/bench.json "$@" </dev/null
[ "$whole" -gt 0 ] || PYTHONPATH=bench "$VENV/bin/python" bench/report.py build/bench.json
