#!/usr/bin/env bash
# Fuzz the decoder of stored records: ci/fuzz.sh [seconds, default 60] [more options of libFuzzer]
#
# Whatever the bytes, only CorruptRecord may leave it. Inputs that found something stay in build/fuzz/findings; to run
# one again: .venv/bin/python tests/fuzz/fuzz_records.py <the file>
source "$(dirname "$0")/common.sh"
ci/setup.sh fuzz

SECONDS_TO_RUN=${1:-60}
shift $(($# > 0 ? 1 : 0))
OUT=$ROOT/build/fuzz
rm -rf "$OUT"
mkdir -p "$OUT/corpus" "$OUT/findings"

say "fuzzing the decoder for $SECONDS_TO_RUN s"
# A sealed record or a deep one takes microseconds: one that takes 10 s, or 1 GB, is a finding too.
"$VENV/bin/python" tests/fuzz/fuzz_records.py "$OUT/corpus" -max_total_time="$SECONDS_TO_RUN" -max_len=4096 -timeout=10 \
    -rss_limit_mb=1024 -print_final_stats=1 -verbosity=1 -artifact_prefix="$OUT/findings/" "$@" >"$OUT/log" 2>&1 </dev/null ||
    { tail -n 60 "$OUT/log" >&2; die "the decoder let something through; see $OUT/findings and $OUT/log"; }
grep -E '^stat::(number_of_executed_units|average_exec_per_sec|peak_rss_mb)' "$OUT/log"
