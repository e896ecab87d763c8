#!/usr/bin/env bash
# The core suites under AddressSanitizer and UBSan, then the ThreadSanitizer driver. Arguments go to pytest.
#
# The interpreter itself is not instrumented, so the runtimes are preloaded, Python's own allocator is switched off
# (each object its own malloc, so that a stray access is seen), and leaks are not reported: an interpreter keeps much on
# purpose. Reference leaks are found by tests that count objects and memory instead.
source "$(dirname "$0")/common.sh"
ci/setup.sh test

SUITES=(tests/unit tests/contract tests/native tests/faults tests/stress)
LEFT_OUT='not browser and not redis'
# They limit the address space of a child, of which the shadow memory of ASan alone takes terabytes.
DESELECTED=(--deselect tests/unit/test_codec.py::test_Z6_a_header_that_promises_gigabytes_allocates_nothing)
# It watches the size of the process, and ASan keeps what was freed.
DESELECTED+=(--deselect tests/stress/test_isolated.py::test_R34_memory_is_flat_over_many_sessions)
COPY=$ROOT/build/sanitize

say "compiling the extension with -fsanitize=address,undefined"
copy_tree "$COPY"
cd "$COPY"
CYSESSION_SANITIZE=1 "$VENV/bin/python" setup.py --quiet build_ext --inplace --force

# run_sanitized <command>...
run_sanitized() {
    local asan ubsan
    asan=$(gcc -print-file-name=libasan.so)
    ubsan=$(gcc -print-file-name=libubsan.so)
    [ -e "$asan" ] && [ -e "$ubsan" ] || die "gcc has no libasan.so or libubsan.so; install the libgcc-*-dev package of its version"
    env LD_PRELOAD="$asan $ubsan" PYTHONMALLOC=malloc PYTHONPATH="$COPY/src" \
        ASAN_OPTIONS=detect_leaks=0:halt_on_error=1:detect_stack_use_after_return=1:allocator_may_return_null=1 \
        UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 "$@" </dev/null
}

say "running the suites under ASan and UBSan"
# The module under test must be the sanitized one, and a sanitizer that is not there finds nothing.
run_sanitized "$VENV/bin/python" -c "import cysession._core as core, ctypes
assert core.__file__.startswith('$COPY/'), core.__file__
assert ctypes.CDLL(None).__asan_init, 'no ASan runtime'"
if [ $# -eq 0 ]; then
    for suite in "${SUITES[@]}"; do [ -d "$suite" ] && set -- "$@" "$suite"; done
fi
run_sanitized "$VENV/bin/python" -X faulthandler -m pytest -m "$LEFT_OUT" -p no:cacheprovider "${DESELECTED[@]}" "$@"

# Threads: the stock interpreter's locks are invisible to TSan, so the table and the wheel are driven without one.
say "running the ThreadSanitizer driver"
ci/tsan.sh
