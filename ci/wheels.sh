#!/usr/bin/env bash
# Wheels for Linux, from the sdist, into dist/: built for the glibc of 2014 (manylinux2014), checked, installed, tested.
#
#   1. the sdist, twice: both must have the same bytes
#   2. a wheel for x86-64 and one for aarch64 for every interpreter that ci/interpreters.sh finds, twice: same bytes again
#   3. each is looked at: what it links, which symbols it needs, what it contains, what auditwheel and twine say
#   4. each x86-64 wheel is installed into an empty environment outside the tree and runs the core and contract suites
#
# CPython 3.14t can be had nowhere, but its headers are those of 3.14 with one definition more. So its wheels are built
# and looked at, as those for aarch64 are; nothing runs them here.
#
# Linking is what binds a wheel to a glibc. It is done by zig, which carries the symbols of every release of it; x86-64 is
# compiled by gcc (its code for this core is 8 % faster than clang's), other processors by zig as well. What
# pyproject.toml says to cibuildwheel makes the same wheels in the official images, and those for macOS and Windows.
#
#   WHEELS="3.12 3.13t"   only these interpreters      TEST=0   without step 4
#   SOURCE_DATE_EPOCH     the time that files in the archives carry (default: that of the last commit)
source "$(dirname "$0")/common.sh"
ci/setup.sh wheels
umask 022
export LC_ALL=C PYTHONHASHSEED=0 PIP_NO_INPUT=1

GLIBC=2.17
OUT=$ROOT/build/wheels
DIST=$ROOT/dist
SUITES=(tests/unit tests/contract)
# Both look at the source tree, which is what must not be there.
LEFT_OUT=(--ignore tests/unit/test_layout.py --ignore tests/contract/test_documentation.py)
LEFT_OUT+=(--ignore tests/contract/test_redis.py) # needs a server
export ZIG_GLOBAL_CACHE_DIR=$OUT/zig ZIG_LOCAL_CACHE_DIR=$OUT/zig

if [ -z "${SOURCE_DATE_EPOCH:-}" ]; then
    SOURCE_DATE_EPOCH=$(git log -1 --format=%ct 2>/dev/null || stat -c %Y CHANGELOG.md)
fi
export SOURCE_DATE_EPOCH

rm -rf "$OUT" && mkdir -p "$OUT" "$DIST"
rm -f "$DIST"/cysession-*

# ---- the sdist ------------------------------------------------------------------------------------------

# make_sdist <directory>: prints its path. setuptools writes the time of day and our user into it, so it is packed again.
make_sdist() {
    copy_tree "$1/tree"
    (cd "$1/tree" && "$VENV/bin/python" -m build --sdist --no-isolation --outdir "$1/raw" .) >"$1/log" 2>&1 ||
        { cat "$1/log" >&2; die "the sdist cannot be built"; }
    "$VENV/bin/python" ci/packages.py repack "$1/raw"/cysession-*.tar.gz "$1"
}

# same <path> <path>: two builds of one thing
same() { cmp "$1" "$2" || die "two builds of ${1##*/} differ: it is not reproducible"; }

say "the sdist"
sdist=$(make_sdist "$OUT/sdist")
same "$sdist" "$(make_sdist "$OUT/sdist-again")"
cp "$sdist" "$DIST"

# ---- wheels ---------------------------------------------------------------------------------------------

# compiler <architecture>: a cc for one target, as a file because build tools take the name of a program.
compiler() {
    local path=$OUT/cc-$1 compile='exec "$zig" -m ziglang cc -target '$1-linux-gnu.$GLIBC' "$@"'
    [ "$1" != "$(uname -m)" ] || compile='exec gcc "$@"'
    cat >"$path" <<SCRIPT
#!/bin/sh
zig=$VENV/bin/python
for argument; do [ "\$argument" != -c ] || $compile; done
exec "\$zig" -m ziglang cc -target $1-linux-gnu.$GLIBC "\$@" -s
SCRIPT
    chmod +x "$path"
    echo "$path"
}

# builder <version> <python>: the environment that builds for this interpreter, with the pinned tools
builder() {
    local venv=$ROOT/.cache/wheels/$1 sum
    sum=$({ "$2" -VV; cat ci/constraints.txt ci/requirements/build.txt; } | sha256sum)
    if [ "$(cat "$venv/stamp" 2>/dev/null)" != "$sum" ]; then
        rm -rf "$venv"
        "$2" -m venv "$venv"
        "$venv/bin/python" -m pip install --quiet -c ci/constraints.txt -r ci/requirements/build.txt wheel </dev/null
        echo "$sum" >"$venv/stamp"
    fi
    echo "$venv/bin/python"
}

# build_wheel <version> <builder> <architecture> <directory>: prints its path
build_wheel() {
    local tag=${1/./} cflags=-g0 cc
    cc=$(compiler "$3")
    [ "$1" != "$borrowed" ] || cflags+=" -DPy_GIL_DISABLED=1"
    mkdir -p "$4/raw"
    # The interpreter that builds may be of another processor than the wheel; these two say what the wheel is for.
    # LDSHARED: the interpreter's own one carries paths of the machine that it was built on.
    env CC="$cc" LDSHARED="$cc -shared" CFLAGS="$cflags" LDFLAGS= _PYTHON_HOST_PLATFORM="linux-$3" \
        SETUPTOOLS_EXT_SUFFIX=".cpython-$tag-$3-linux-gnu.so" \
        "$2" -m pip wheel --quiet --no-deps --no-build-isolation --no-cache-dir --wheel-dir "$4/raw" "$sdist" \
        </dev/null >"$4/log" 2>&1 || { cat "$4/log" >&2; die "no wheel for CPython $1 on $3"; }
    [ "$1" != "$borrowed" ] || "$2" -m wheel tags --remove --abi-tag "cp$tag" "$4"/raw/*.whl >>"$4/log"
    PATH=$VENV/bin:$PATH "$VENV/bin/auditwheel" repair --plat auto --wheel-dir "$4" "$4"/raw/*.whl >>"$4/log" 2>&1 ||
        { cat "$4/log" >&2; die "auditwheel refuses the wheel for CPython $1 on $3"; }
    # "auto" takes the oldest system that it finds the wheel fit for.
    ls "$4"/*manylinux2014_"$3"*.whl || die "the wheel for CPython $1 on $3 needs a newer system than manylinux2014: $(ls "$4")"
}

# With the interpreters that this Debian lacks, unless the caller chose. 3.14 is that of a release in the making, whose
# mirrors may be between two versions: then it is among those that were not built.
if [ -z "${WHEELS:-}" ]; then
    ci/cpython.sh 3.13t >/dev/null
    ci/cpython.sh 3.14 >/dev/null || echo "CPython 3.14 cannot be had" >&2
fi
found=$(ci/interpreters.sh ${WHEELS:-} 2>"$OUT/missing")
[ -n "$found" ] || die "none of the interpreters was found: $(cat "$OUT/missing")"
borrowed=
if grep -q '3\.14t' "$OUT/missing" && with_gil=$(ci/interpreters.sh 3.14 2>/dev/null) && [ -n "$with_gil" ]; then
    borrowed=3.14t
    sed -i '/3\.14t/d' "$OUT/missing"
fi

{ echo "$found"; [ -z "$borrowed" ] || printf '%s\t%s\n' "$borrowed" "${with_gil#*$'\t'}"; } >"$OUT/interpreters"
while IFS=$'\t' read -r version python; do
    if [ "$version" = "$borrowed" ]; then build=$(builder 3.14 "$python"); else build=$(builder "$version" "$python"); fi
    for architecture in x86_64 aarch64; do
        say "CPython $version, $architecture"
        wheel=$(build_wheel "$version" "$build" "$architecture" "$OUT/$version-$architecture")
        same "$wheel" "$(build_wheel "$version" "$build" "$architecture" "$OUT/again-$version-$architecture")"
        "$VENV/bin/python" ci/packages.py check "$wheel" "$architecture" "$GLIBC"
        cp "$wheel" "$DIST"
    done
done <"$OUT/interpreters"

say "twine"
"$VENV/bin/twine" check --strict "$DIST"/*

# ---- in use ---------------------------------------------------------------------------------------------

# try_wheel <version> <python>: an empty environment, the wheel, and of the tree nothing but the tests
try_wheel() {
    local python=$elsewhere/$1/venv/bin/python extras="[crypto]"
    [ "$1" = "${1%t}" ] || extras="" # no wheel of cryptography fits 3.13t
    "$2" -m venv "$elsewhere/$1/venv"
    "$python" -m pip install --quiet -c ci/constraints.txt "$(ls "$DIST"/*-cp"${1//[.t]/}"-cp"${1/./}"-*x86_64.whl)$extras" -r ci/requirements/suites.txt </dev/null
    mkdir "$elsewhere/$1/work"
    cp -r tests examples docs pyproject.toml "$elsewhere/$1/work"
    (
        cd "$elsewhere/$1/work"
        "$python" -W error -c 'import cysession, cysession._core as core, sys
assert all("site-packages" in m.__file__ and sys.prefix in m.__file__ for m in (cysession, core)), core.__file__'
        "$python" -m pytest -q -p no:cacheprovider -m 'not browser and not redis' "${LEFT_OUT[@]}" "${SUITES[@]}" </dev/null
    ) || die "the suites fail on the installed wheel for CPython $1"
}

if [ "${TEST:-1}" != 0 ]; then
    elsewhere=$(mktemp -d "${TMPDIR:-/tmp}/cysession-wheels.XXXXXX")
    trap 'rm -rf "$elsewhere"' EXIT
    while IFS=$'\t' read -r version python; do
        say "the core and contract suites on the installed wheel, CPython $version"
        try_wheel "$version" "$python"
    done <<<"$found"
fi

say "in dist/"
(cd "$DIST" && stat -c '%s bytes  %n' *)
while read -r line; do echo "not built: $line"; done <"$OUT/missing"
echo "not run: aarch64 ${borrowed:+and CPython $borrowed }"
