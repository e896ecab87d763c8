#!/usr/bin/env bash
# Make the tree ready to work in: ci/setup.sh [demo|docs|test|lint|bench|fuzz|guard|wheels]
#
# Creates .venv, installs what the purpose needs and compiles the extension in place (editable install). Each step
# leaves a stamp with a checksum of what it was made from, so a second run only compares checksums.
#
#   PYTHON=   the interpreter to build .venv with (default: the first of python3.11, python3, python3.12 ... that is new enough)
source "$(dirname "$0")/common.sh"

PURPOSE=${1:-build}
STAMPS=$VENV/stamps

usable() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

find_python() {
    local candidate
    if [ -n "${PYTHON:-}" ]; then
        usable "$PYTHON" || die "PYTHON=$PYTHON is not a Python 3.11 or newer"
        command -v "$PYTHON"
        return
    fi
    for candidate in python3.11 python3 python3.12 python3.13 python3.14; do
        usable "$candidate" && command -v "$candidate" && return
    done
    die "no Python 3.11 or newer found; install python3 or name one with PYTHON="
}

# What Debian splits off its Python but we need: venv with pip inside, and the headers.
need_python_parts() {
    local version
    "$1" -c 'import ensurepip, venv, os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' >/dev/null 2>&1 && return
    version=$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    case "$("$1" -c 'import sys; print(sys.base_prefix)')" in
        /usr) need_packages "python$version-venv" "python$version-dev" ;;
        *) die "$1 lacks ensurepip or its C headers (Python.h)" ;;
    esac
}

# stamped <name> <checksum>: is that step done with exactly these inputs?
stamped() { [ "$(cat "$STAMPS/$1" 2>/dev/null)" = "$2" ]; }
stamp() { mkdir -p "$STAMPS" && echo "$2" >"$STAMPS/$1"; }
checksum() { cat "$@" | sha256sum | cut -d' ' -f1; }

make_venv() {
    local python identity
    # An existing environment is kept unless another interpreter was asked for by name.
    if [ -x "$VENV/bin/python" ] && [ -e "$STAMPS/venv" ] && [ -z "${PYTHON:-}" ] && usable "$VENV/bin/python"; then return; fi
    python=$(find_python)
    identity=$("$python" -c 'import sys; print(sys.base_prefix, sys.version)')
    stamped venv "$identity" && return
    need_python_parts "$python"
    say "creating $VENV with $python"
    rm -rf "$VENV"
    "$python" -m venv "$VENV"
    stamp venv "$identity"
}

install() { "$VENV/bin/python" -m pip install --quiet --no-input --constraint ci/constraints.txt "$@" </dev/null; }

# install_requirements <name>: ci/requirements/<name>.txt
install_requirements() {
    local sum
    sum=$(checksum ci/constraints.txt ci/requirements/*.txt)
    stamped "requirements-$1" "$sum" && return
    say "installing ci/requirements/$1.txt"
    install -r "ci/requirements/$1.txt"
    stamp "requirements-$1" "$sum"
}

# install_peers: what the benchmarks compare us with. One that cannot be had is said here and named in the report.
install_peers() {
    local sum requirement
    sum=$(checksum ci/constraints.txt ci/requirements/peers.txt)
    stamped peers "$sum" && return
    say "installing ci/requirements/peers.txt"
    if ! install -r ci/requirements/peers.txt; then
        sed -e 's/ *#.*//' -e '/^$/d' ci/requirements/peers.txt | while read -r requirement; do
            install "$requirement" || say "cannot be installed here: $requirement"
        done
    fi
    stamp peers "$sum"
}

install_package() {
    local sum
    sum=$(checksum pyproject.toml ci/constraints.txt)
    stamped package "$sum" && return
    say "installing cysession (editable)"
    rm -f src/_core.c
    install --no-build-isolation --editable .
    stamp package "$sum"
    stamp extension "$(extension_sum)"
}

extension_sum() {
    {
        cat setup.py ci/constraints.txt
        find src -maxdepth 1 -type f \( -name '*.p[yx][xdi]' -o -name '*.h' \) -print0 | sort -z | xargs -0 cat
        # The compiler's flags and our switches decide what is built just as the sources do.
        env | grep -E '^(CC|CFLAGS|CYSESSION_(DEBUG|SANITIZE|TRACE|STRICT))=' || true
    } | sha256sum | cut -d' ' -f1
}

build_extension() {
    local sum
    sum=$(extension_sum)
    stamped extension "$sum" && compgen -G "src/cysession/_core.*.so" >/dev/null && return
    say "compiling the extension"
    # Checksums, not file times, say that it is stale (a checkout may bring old sources with new times and the reverse).
    rm -f src/_core.c
    "$VENV/bin/python" setup.py --quiet build_ext --inplace --force
    stamp extension "$sum"
}

# need_command <command> <package>: by command first, so that a browser from elsewhere counts too.
missing=()
need_command() { command -v "$1" >/dev/null 2>&1 || missing+=("$2"); }

need_command gcc gcc
case $PURPOSE in test | bench | guard) need_command redis-server redis-server ;; esac
case $PURPOSE in bench) need_command wrk wrk ;; esac
if [ "$PURPOSE" = test ]; then
    need_command chromium chromium
    need_command chromedriver chromium-driver
fi
if [ "$PURPOSE" = guard ]; then
    need_command valgrind valgrind
fi
[ ${#missing[@]} -eq 0 ] || need_packages "${missing[@]}"

mkdir -p "$(dirname "$VENV")"
exec 9>"$VENV.lock"
flock 9 # "make test" and "make demo" at once: one sets up, the other waits
make_venv
install_requirements build
install_package
build_extension
case $PURPOSE in
    build) ;;
    docs | demo | test | lint | fuzz | guard | wheels) install_requirements "$PURPOSE" ;;
    bench)
        install_requirements bench
        install_peers
        ;;
    *) die "unknown purpose '$PURPOSE'; one of: build demo docs test lint bench fuzz guard wheels" ;;
esac
