#!/usr/bin/env bash
# Which of the supported interpreters does this machine have? One line each: version, a tab, path.
#
# Looks at python3.X on PATH and at what pyenv, uv and ci/cpython.sh keep in their own directories. Counted is
# what starts, has its C headers and can make environments: everything that is done with them needs both.
#
#   ci/interpreters.sh [version]...   only these (3.11, 3.13t, ...); says on stderr which of them are missing
source "$(dirname "$0")/common.sh"

SUPPORTED=(3.11 3.12 3.13 3.13t 3.14 3.14t)
PROBE='import ensurepip, os, sys, sysconfig, venv
version = "%d.%d" % sys.version_info[:2] + ("t" if sysconfig.get_config_var("Py_GIL_DISABLED") else "")
header = os.path.join(sysconfig.get_path("include"), "Python.h")
assert version == sys.argv[1] and os.path.exists(header) and sys.version_info.releaselevel == "final"
print(os.path.realpath(sys.executable))'

candidates() {
    type -ap "python$1" || true
    # The newest of several first. A directory that is not there leaves its pattern behind, which does not start.
    printf '%s\n' "${PYENV_ROOT:-$HOME/.pyenv}"/versions/*/bin/"python$1" \
        "${XDG_DATA_HOME:-$HOME/.local/share}"/uv/python/*/bin/"python$1" \
        "${XDG_CACHE_HOME:-$HOME/.cache}"/cysession/cpython-*/bin/"python$1" | sort -Vr
}

[ $# -gt 0 ] || set -- "${SUPPORTED[@]}"
for version in "$@"; do
    found=
    while read -r candidate; do
        if found=$("$candidate" -I -c "$PROBE" "$version" 2>/dev/null); then break; fi
        found=
    done < <(candidates "$version")
    if [ -n "$found" ]; then printf '%s\t%s\n' "$version" "$found"; else echo "no CPython $version here (with headers and venv)" >&2; fi
done
