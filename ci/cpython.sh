#!/usr/bin/env bash
# Bring a CPython that Debian 12 lacks, once, into a cache outside the tree; its path is the last line that is printed.
#
#   ci/cpython.sh 3.13t   built here, since Debian has no interpreter without a GIL: from its source package in trixie
#   ci/cpython.sh 3.14    the packages of forky, unpacked, together with the C library that they were made for
#
# The mirror is the one this machine's apt already uses, and apt itself checks the chain from the signed Release file to
# each archive. Nothing is installed into the system, except -dev packages and tools that are missing, by root.
# With --installed behind the version nothing is brought: status 1 if it is not there.
#
#   CYSESSION_PYTHONS   where they are kept, one directory each   (default ~/.cache/cysession)
source "$(dirname "$0")/common.sh"

VERSION=${1:-}
case $VERSION in
    3.13t) RELEASE=trixie KIND=deb-src ;;
    3.14) RELEASE=forky KIND=deb ;;
    *) die "which CPython? one of: 3.13t 3.14" ;;
esac
PREFIX=${CYSESSION_PYTHONS:-${XDG_CACHE_HOME:-$HOME/.cache}/cysession}/cpython-$VERSION
PYTHON=$PREFIX/bin/python$VERSION
KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg

# A private apt: own lists, cache and sources, and a system without any package, so that the machine's is left alone.
# Everything else (proxies, credentials, date checks) comes from the machine's configuration.
private_apt() {
    apt-get -o "Dir::State=$work/apt/state" -o "Dir::State::status=$work/apt/state/status" -o "Dir::Cache=$work/apt/cache" \
        -o "Dir::Etc::sourcelist=$work/apt/sources.list" -o Dir::Etc::sourceparts=- -o Dir::Etc::trusted="$KEYRING" \
        -o Dir::Etc::trustedparts=- -o APT::Sandbox::User="$(id -un)" -o Acquire::Languages=none -o Acquire::Retries=3 "$@" </dev/null
}

# The archives this machine installs Debian itself from: apt reads its own one-line and deb822 sources for us.
debian_mirrors() {
    local codename
    codename=$(. /etc/os-release && echo "${VERSION_CODENAME:?}")
    apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
        awk -v release="$codename" '$2 == release && $3 == "main" && !seen[$1]++ { print $1 }'
}

# download <arguments of apt-get>...: from the first mirror that has it, into $work or its apt's cache
download() {
    local mirror
    for mirror in $(debian_mirrors); do
        rm -rf "$work/apt"
        mkdir -p "$work/apt/state/lists/partial" "$work/apt/cache/archives/partial"
        : >"$work/apt/state/status"
        echo "$KIND [signed-by=$KEYRING] $mirror $RELEASE main" >"$work/apt/sources.list"
        if private_apt -o APT::Update::Error-Mode=any update && (cd "$work" && private_apt "$@"); then return 0; fi
    done
    die "no Debian mirror in this machine's apt configuration has Python ${VERSION%t} of $RELEASE"
}

# Complete, of the asked kind, and with the modules that the suites and pip import.
ready() {
    [ -e "$PREFIX/.complete" ] && "$PYTHON" -c 'import ctypes, ensurepip, sqlite3, ssl, sys, sysconfig, venv, zlib
assert bool(sysconfig.get_config_var("Py_GIL_DISABLED")) == sys.argv[1].endswith("t")' "$VERSION" 2>/dev/null
}

build_from_source() {
    need_packages gcc make libc6-dev libssl-dev zlib1g-dev libffi-dev libsqlite3-dev xz-utils
    download source --download-only "python${VERSION%t}"
    say "building it into $PREFIX (about 3 minutes on 2 cores)"
    mkdir "$work/src"
    # The upstream tarball without Debian's patches: those adapt paths for a system Python, which this is not.
    tar -xf "$work"/python*.orig.tar.xz -C "$work/src" --strip-components=1
    cd "$work/src"
    ./configure --quiet --prefix="$PREFIX" --disable-gil --disable-test-modules --with-ensurepip=install
    make -s -j"$JOBS"
    make -s install >/dev/null
    cd "$ROOT"
}

# What lies in /usr elsewhere lies in $PREFIX. The program is told where its loader and its libraries are, because the C
# library of this machine is older than it needs.
unpack_packages() {
    local package triplet
    need_packages patchelf
    triplet=$(uname -m)-linux-gnu
    download install --yes --download-only --no-install-recommends "python$VERSION-venv" "libpython$VERSION-dev"
    say "unpacking it into $PREFIX"
    for package in "$work"/apt/cache/archives/*.deb; do dpkg-deb --extract "$package" "$work/root"; done
    mv "$work"/root/usr/* "$PREFIX"
    patchelf --set-interpreter "$(echo "$PREFIX"/lib64/ld-linux-*.so.*)" --force-rpath --set-rpath "$PREFIX/lib/$triplet" "$PYTHON"
    # Debian's ensurepip takes pip from a directory of the system.
    grep -rlZ --include='*.py' /usr/share/python-wheels "$PREFIX/lib/python$VERSION" |
        xargs -0 sed -i "s|/usr\(/share/python-wheels\)|$PREFIX\1|"
    # Its pyconfig.h includes that of one processor by name; this one is true for others of 64 bits, too.
    cp "$PREFIX/include/$triplet/python$VERSION/pyconfig.h" "$PREFIX/include/python$VERSION"
}

bring() {
    say "downloading Python ${VERSION%t} of $RELEASE"
    case $KIND in deb-src) build_from_source ;; deb) unpack_packages ;; esac
    touch "$PREFIX/.complete"
    ready || die "the interpreter in $PREFIX lacks a module that is needed, or is of the wrong kind; see $work"
}

if [ "${2:-}" = --installed ]; then
    ready || exit 1
fi
if ! ready; then
    [ -r "$KEYRING" ] || need_packages debian-archive-keyring >&2
    mkdir -p "$(dirname "$PREFIX")"
    exec 9>"$PREFIX.lock"
    flock 9 # two runs at once: the second waits and finds the work done
    if ! ready; then
        rm -rf "$PREFIX"
        mkdir "$PREFIX"
        work=$(mktemp -d "${TMPDIR:-/tmp}/cpython-$VERSION.XXXXXX")
        bring >&2
        rm -rf "$work"
    fi
    exec 9>&-
fi
echo "$PYTHON"
