#!/usr/bin/env bash
# ThreadSanitizer over the session table and its timer wheel. Arguments: "--prove" also runs the driver with the locks
# taken out, which must be reported; THREADS and STEPS in the environment set the size of the run.
#
# The stock interpreter is not instrumented, so nothing of it may take part: tests/native/_race.pyx drives the headers
# from POSIX threads of its own. The runtime has to be the first library in the process, hence the preload.
source "$(dirname "$0")/common.sh"
PYTHON=${PYTHON:-$VENV/bin/python}
[ -x "$PYTHON" ] || ci/setup.sh test
THREADS=${THREADS:-4} STEPS=${STEPS:-60000}
OUT=$ROOT/build/tsan

# build <directory> <flag>...: the driver, with the interpreter's own headers
build() {
    local out=$1
    shift
    rm -rf "$out"
    mkdir -p "$out"
    "$PYTHON" -m cython -3 -I src tests/native/_race.pyx -o "$out/_race.c"
    gcc -shared -fPIC -O1 -g -fno-omit-frame-pointer -fsanitize=thread -DCYSESSION_PTHREAD_LOCK "$@" \
        -I "$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("include"))')" \
        "$out/_race.c" -o "$out/_race.so"
}

# run <directory> <operations of each thread>
run() {
    local tsan fixed=()
    tsan=$(gcc -print-file-name=libtsan.so)
    [ -e "$tsan" ] || die "gcc has no libtsan.so; install the libgcc-*-dev package of its version"
    # The shadow memory has fixed addresses, which a randomised address space may have given away. Containers may
    # forbid to switch that off; then it works or fails by chance, and says so.
    setarch -R true 2>/dev/null && fixed=(setarch -R)
    env LD_PRELOAD="$(realpath "$tsan")" PYTHONPATH="$1" \
        TSAN_OPTIONS="halt_on_error=1:exitcode=66:second_deadlock_stack=1:history_size=4" \
        "${fixed[@]}" "$PYTHON" -I -c "import sys; sys.path.insert(0, '$1')
import ctypes, _race
assert ctypes.CDLL(None).__tsan_init, 'no TSan runtime'
for seed in range(3):
    left = _race.run($THREADS, $2, seed)
    assert left == 0, f'{left} references were never given back'
print('no data race in', 3 * $THREADS * $2, 'operations of $THREADS threads')" </dev/null
}

say "compiling the table and the wheel with -fsanitize=thread"
build "$OUT/locked"
say "running them from $THREADS threads under ThreadSanitizer"
run "$OUT/locked" "$STEPS"

if [ "${1:-}" = --prove ]; then
    say "the same with the locks taken out: now it has to be reported"
    build "$OUT/unlocked" -DRACE_WITHOUT_LOCK
    if run "$OUT/unlocked" 2000 >"$OUT/unlocked.log" 2>&1; then
        die "ThreadSanitizer saw nothing in a table without locks: this check checks nothing"
    fi
    grep -q "WARNING: ThreadSanitizer: data race" "$OUT/unlocked.log" || { cat "$OUT/unlocked.log" >&2; die "it failed for another reason"; }
    grep -m 1 -A 4 "WARNING: ThreadSanitizer" "$OUT/unlocked.log"
fi
