#!/usr/bin/env bash
# The Django tests on the newest Django. Arguments go to pytest.
#
# The test-suite itself runs on Python 3.11 and so with the newest long-term release of Django that this can run; the
# newest release wants Python 3.12. Which versions they are stands in ci/constraints.txt.
#
#   DJANGO_PYTHON=   the interpreter to use (default: the first of 3.12, 3.13, 3.14 that ci/interpreters.sh finds, else
#                    the one of ci/cpython.sh 3.13t, with its GIL switched on)
source "$(dirname "$0")/common.sh"

COPY=$ROOT/build/django
DJANGO_VENV=$ROOT/.cache/venv-django

usable() { "$1" -c 'import ensurepip, os, sys, sysconfig, venv
sys.exit(sys.version_info < (3, 12) or not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' >/dev/null 2>&1; }

find_python() {
    local version found
    if [ -n "${DJANGO_PYTHON:-}" ]; then
        usable "$DJANGO_PYTHON" || die "DJANGO_PYTHON=$DJANGO_PYTHON is not a Python 3.12 or newer with venv and headers"
        command -v "$DJANGO_PYTHON"
        return
    fi
    for version in 3.12 3.13 3.14; do
        found=$(ci/interpreters.sh "$version" 2>/dev/null)
        if [ -n "$found" ]; then cut -f 2 <<<"$found" && return; fi
    done
    ci/cpython.sh 3.13t | tail -n 1
}

command -v gcc >/dev/null 2>&1 || need_packages gcc
command -v redis-server >/dev/null 2>&1 || need_packages redis-server
python=$(find_python)
export PYTHON_GIL=1 # no other interpreter minds
sum=$({ "$python" -VV; cat ci/constraints.txt ci/requirements/build.txt ci/requirements/suites.txt ci/django.sh; } | sha256sum)
if [ "$(cat "$DJANGO_VENV/stamp" 2>/dev/null)" != "$sum" ]; then
    say "creating $DJANGO_VENV with $python"
    rm -rf "$DJANGO_VENV"
    "$python" -m venv "$DJANGO_VENV"
    "$DJANGO_VENV/bin/python" -m pip install --quiet --no-input -c ci/constraints.txt -r ci/requirements/build.txt \
        -r ci/requirements/suites.txt Django redis hiredis </dev/null
    echo "$sum" >"$DJANGO_VENV/stamp"
fi

say "compiling the extension for $("$DJANGO_VENV/bin/python" -V)"
copy_tree "$COPY"
cd "$COPY"
"$DJANGO_VENV/bin/python" setup.py --quiet build_ext --inplace
# An editable install without a second build: the copy's src is on the path of every process of this environment.
echo "$COPY/src" >"$("$DJANGO_VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/cysession-copy.pth"

say "running the Django tests on Django $("$DJANGO_VENV/bin/python" -c 'import django
assert django.VERSION >= (6, 0), f"not the newest: Django {django.__version__}"
print(django.__version__)')"
exec "$DJANGO_VENV/bin/python" -m pytest tests/django "$@" </dev/null
