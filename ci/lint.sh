#!/usr/bin/env bash
# Every check that runs no test: Python style and types, the leaf rule of the core, and a strict build of the core.
source "$(dirname "$0")/common.sh"
ci/setup.sh lint

failed=()
check() {
    say "$1"
    shift
    "$@" </dev/null || failed+=("$*")
}

# Hints are not warnings to Cython, so warnings-as-errors lets them pass; each one is a hidden call into Python or a
# hidden grab of the GIL in code that was meant to be plain C.
strict_core() {
    local copy=$ROOT/build/strict log=$ROOT/build/strict.log
    copy_tree "$copy"
    if ! (cd "$copy" && CYSESSION_STRICT=1 CYSESSION_ANNOTATE=1 "$VENV/bin/python" setup.py build_ext --inplace --force) >"$log" 2>&1; then
        cat "$log" >&2
        return 1
    fi
    if grep -i -A6 'performance hint:' "$log" >&2; then
        echo "Cython performance hints; state the exception contract (noexcept, except -1) of what is called" >&2
        return 1
    fi
    echo "no warning, no performance hint (annotated source: build/strict/src/_core.html)"
}

check "ruff check" "$VENV/bin/ruff" check .
check "ruff format" "$VENV/bin/ruff" format --check .
check "mypy --strict" "$VENV/bin/mypy" --strict src/cysession
check "pyright" "$VENV/bin/pyright" --pythonpath "$VENV/bin/python"
check "right and wrong programs" "$VENV/bin/python" ci/check_types.py
# Only the core has a stub beside its code; everything else carries its types itself.
check "the stub of the core, against the core" "$VENV/bin/python" -m mypy.stubtest cysession._core \
    --mypy-config-file pyproject.toml --allowlist ci/stubtest-allow.txt
check "the leaf rule: no Python-object work inside a locked section" "$VENV/bin/python" ci/check_locked_sections.py
check "strict build of the core" strict_core

[ ${#failed[@]} -eq 0 ] || die "$(printf 'failed: %s\n       ' "${failed[@]}")"
say "lint: all clean"
