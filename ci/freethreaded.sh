#!/usr/bin/env bash
# The core suites on CPython 3.13 without the GIL. Arguments go to pytest instead of the default paths.
#
# The interpreter is built once, outside the tree (ci/cpython.sh). redis and hiredis stay out: importing
# hiredis switches the GIL on again, and then nothing here would be tested.
source "$(dirname "$0")/common.sh"

SUITES=(tests/unit tests/contract tests/native tests/faults tests/stress)
# Need a browser, a server or a framework that has nothing to do with the GIL.
LEFT_OUT='not browser and not redis'
CANNOT_IMPORT=(--ignore tests/contract/test_redis.py)

python=$(ci/cpython.sh 3.13t | tail -n 1)
COPY=$ROOT/build/freethreaded
FT_VENV=$ROOT/.cache/venv-freethreaded

sum=$({ "$python" -VV; cat ci/constraints.txt ci/requirements/build.txt ci/requirements/suites.txt; } | sha256sum)
if [ "$(cat "$FT_VENV/stamp" 2>/dev/null)" != "$sum" ]; then
    say "creating $FT_VENV with $python"
    rm -rf "$FT_VENV"
    "$python" -m venv "$FT_VENV"
    "$FT_VENV/bin/python" -m pip install --quiet --no-input -c ci/constraints.txt -r ci/requirements/build.txt -r ci/requirements/suites.txt </dev/null
    echo "$sum" >"$FT_VENV/stamp"
fi

say "compiling the extension for $("$FT_VENV/bin/python" -VV)"
copy_tree "$COPY"
cd "$COPY"
"$FT_VENV/bin/python" setup.py --quiet build_ext --inplace
# An editable install without a second build: the copy's src is on the path of every process of this environment.
echo "$COPY/src" >"$("$FT_VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/cysession-copy.pth"

say "running the suites without the GIL"
"$FT_VENV/bin/python" -W error -c 'import sys, cysession
assert not sys._is_gil_enabled(), "importing cysession switched the GIL on"'
if [ $# -eq 0 ]; then
    for suite in "${SUITES[@]}"; do [ -d "$suite" ] && set -- "$@" "$suite"; done
fi
"$FT_VENV/bin/python" -m pytest -m "$LEFT_OUT" "${CANNOT_IMPORT[@]}" "$@" </dev/null
