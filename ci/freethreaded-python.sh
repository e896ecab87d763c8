#!/usr/bin/env bash
# Build CPython 3.13 without the GIL, once, and print the path of the interpreter as the last line.
#
# Debian 12 has no free-threaded Python, so it is built from Debian's own source package of the trixie release into a
# cache outside the tree. The mirror is the one this machine's apt already uses, and apt itself checks the chain from
# the signed Release file to the tarball. No root is needed except to install missing -dev packages.
#
# With --installed nothing is built: status 1 if it is not there.
#
#   CYSESSION_FT_PREFIX   where it is installed   (default ~/.cache/cysession/cpython-3.13t)
source "$(dirname "$0")/common.sh"

PREFIX=${CYSESSION_FT_PREFIX:-${XDG_CACHE_HOME:-$HOME/.cache}/cysession/cpython-3.13t}
PYTHON=$PREFIX/bin/python3.13t
RELEASE=trixie
SOURCE=python3.13
KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg

# A private apt: own lists, cache and sources, so that the machine's are left alone. Everything else (proxies,
# credentials, date checks) comes from the machine's configuration.
private_apt() {
    apt-get -o "Dir::State=$work/apt/state" -o "Dir::Cache=$work/apt/cache" -o "Dir::Etc::sourcelist=$work/apt/sources.list" \
        -o Dir::Etc::sourceparts=- -o Dir::Etc::trusted="$KEYRING" -o Dir::Etc::trustedparts=- \
        -o APT::Sandbox::User="$(id -un)" -o Acquire::Languages=none -o Acquire::Retries=3 "$@" </dev/null
}

# The archives this machine installs Debian itself from: apt reads its own one-line and deb822 sources for us.
debian_mirrors() {
    local codename
    codename=$(. /etc/os-release && echo "${VERSION_CODENAME:?}")
    apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
        awk -v release="$codename" '$2 == release && $3 == "main" && !seen[$1]++ { print $1 }'
}

download() {
    local mirror
    for mirror in $(debian_mirrors); do
        rm -rf "$work/apt"
        mkdir -p "$work/apt/state/lists/partial" "$work/apt/cache/archives/partial"
        : >"$work/apt/state/status"
        echo "deb-src [signed-by=$KEYRING] $mirror $RELEASE main" >"$work/apt/sources.list"
        if private_apt -o "Dir::State::status=$work/apt/state/status" -o APT::Update::Error-Mode=any update &&
            (cd "$work" && private_apt -o "Dir::State::status=$work/apt/state/status" source --download-only "$SOURCE"); then
            return 0
        fi
    done
    die "no Debian mirror in this machine's apt configuration has the source package $SOURCE of $RELEASE"
}

# Complete, free-threaded, and with the modules that the suites and pip import.
ready() { [ -e "$PREFIX/.complete" ] && "$PYTHON" -c 'import ctypes, sqlite3, ssl, sys, zlib; assert not sys._is_gil_enabled()' 2>/dev/null; }

build() {
    mkdir "$work/src"
    # The upstream tarball without Debian's patches: those adapt paths for a system Python, which this is not.
    tar -xf "$work"/${SOURCE}_*.orig.tar.xz -C "$work/src" --strip-components=1
    cd "$work/src"
    ./configure --quiet --prefix="$PREFIX" --disable-gil --disable-test-modules --with-ensurepip=install
    make -s -j"$JOBS"
    make -s install >/dev/null
    cd "$ROOT"
    touch "$PREFIX/.complete"
    ready || die "the interpreter built in $PREFIX lacks ssl, zlib, ctypes, sqlite3 or the free-threaded mode; see $work"
}

if [ "${1:-}" = --installed ]; then
    ready || exit 1
fi
if ! ready; then
    [ -r "$KEYRING" ] || need_packages debian-archive-keyring >&2
    need_packages gcc make libc6-dev libssl-dev zlib1g-dev libffi-dev libsqlite3-dev xz-utils >&2
    mkdir -p "$PREFIX"
    exec 9>"$PREFIX.lock"
    flock 9 # two runs at once: the second waits and finds the work done
    if ! ready; then
        work=$(mktemp -d "${TMPDIR:-/tmp}/cpython-3.13t.XXXXXX")
        say "downloading the source of $SOURCE ($RELEASE)" >&2
        download >&2
        say "building it into $PREFIX (about 3 minutes on 2 cores)" >&2
        build >&2
        rm -rf "$work"
    fi
    exec 9>&-
fi
echo "$PYTHON"
