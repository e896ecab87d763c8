#!/usr/bin/env bash
# The benchmarks, and docs/benchmarks.md with its plots from them: about a quarter of an hour. Arguments go to pytest: a
# part of the benchmarks, such as bench/test_maps.py or "-k wheel", which writes no page.
# A quick look at all of it: CYSESSION_BENCH_TIME=0.1 make bench.
#
# Free-threaded figures are part of the page where the interpreter of `ci/cpython.sh 3.13t` is there already.
source "$(dirname "$0")/common.sh"
ci/setup.sh bench
mkdir -p build
whole=$#
[ $# -gt 0 ] && [ "${1#-}" = "$1" ] || set -- bench "$@" # a path among the arguments comes first
begun=$SECONDS
status=0
# A benchmark that fails, or a file that cannot be imported, must not cost the figures of the others.
"$VENV/bin/python" -m pytest --benchmark-only --benchmark-columns=min,median,rounds --benchmark-sort=min --timeout=600 \
    --continue-on-collection-errors --durations=15 --benchmark-json=build/bench.json "$@" </dev/null || status=$?
[ -s build/bench.json ] || die "no benchmark came to an end"
[ "$whole" -eq 0 ] || exit "$status"

reports=(build/bench.json)
if ci/cpython.sh 3.13t --installed >/dev/null; then
    rm -f build/bench-freethreaded.json
    ci/freethreaded.sh bench/test_threads.py --benchmark-only --benchmark-columns=min \
        "--benchmark-json=$ROOT/build/bench-freethreaded.json" || status=$?
    [ ! -s build/bench-freethreaded.json ] || reports+=(build/bench-freethreaded.json)
fi
"$VENV/bin/python" bench/report.py "${reports[@]}"
say "$((SECONDS - begun)) seconds in all"
[ "$status" -eq 0 ] || die "some benchmarks failed; the page says nothing of them"
