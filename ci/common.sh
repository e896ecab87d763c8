# Shared by the scripts in this directory; sourced, never run.
#
# Every script works from the root of the tree, writes only below .venv, build/, dist/ and .cache/, and stops
# loudly when a tool is missing: a check that did not run must never look like a check that passed.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

ROOT=$PWD
VENV=${VENV:-$ROOT/.venv}
# Two jobs suit the smallest machine we promise to work on; more only helps when building the interpreter.
JOBS=${JOBS:-2}
export PIP_DISABLE_PIP_VERSION_CHECK=1

say() { printf '\n== %s\n' "$*"; }
die() {
    printf '\nerror: %s\n' "$*" >&2
    exit 1
}

# need_packages <package>...: Debian packages, by name. Root installs what is missing; anyone else is told what to do.
need_packages() {
    local package missing=()
    command -v dpkg-query >/dev/null 2>&1 || die "this is not a Debian system; please install what matches: $*"
    for package in "$@"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] && return 0
    [ "$(id -u)" -eq 0 ] || die "missing Debian packages. Please run as root: apt-get install ${missing[*]}"
    say "installing ${missing[*]}"
    # One retry after an update: on a fresh image the package lists are absent or too old.
    export DEBIAN_FRONTEND=noninteractive
    apt-get install -y --no-install-recommends "${missing[@]}" </dev/null ||
        { apt-get update </dev/null && apt-get install -y --no-install-recommends "${missing[@]}" </dev/null; } ||
        die "apt-get could not install: ${missing[*]}"
}

# copy_tree <directory>: a fresh copy of the sources, for builds with other switches or another interpreter. Those must
# not share object files or .so files with the tree: build_ext would take a sanitized module for a plain one.
copy_tree() {
    rm -rf "$1"
    mkdir -p "$1"
    tar -C "$ROOT" -cf - --exclude=./.git --exclude='./.venv*' --exclude=./build --exclude=./dist --exclude=./.cache \
        --exclude='*.so' --exclude=./src/_core.c --exclude='*.egg-info' --exclude=__pycache__ --exclude='./.*_cache' \
        --exclude=./.hypothesis --exclude=./var . | tar -C "$1" -xf -
}
