#!/usr/bin/env bash
# The whole test-suite on every supported interpreter of this machine: 3.11 to 3.13, and 3.13 without the GIL through
# ci/freethreaded.sh. Arguments go to pytest. Each interpreter has an environment and a build of its own, below .cache/
# and build/, so that the next run only tests.
#
#   PYTHONS="3.12 3.13t"   only these
source "$(dirname "$0")/common.sh"

read -ra versions <<<"${PYTHONS:-3.11 3.12 3.13 3.13t}"
failed=()
passed=()

# test_on <version> <python>: in a copy of the tree, because an environment, a .so and a _core.c belong to one interpreter
test_on() {
    local copy=$ROOT/build/test-all/$1
    copy_tree "$copy"
    mkdir -p "$ROOT/.cache/test-all"
    VENV=$ROOT/.cache/test-all/$1 PYTHON=$2 "$copy/ci/test.sh" "${@:3}"
}

found=$(ci/interpreters.sh "${versions[@]}" 2>/dev/null)
for version in "${versions[@]}"; do
    say "CPython $version"
    if [ "$version" = 3.13t ]; then
        if ci/freethreaded.sh "$@"; then passed+=("$version"); else failed+=("$version"); fi
    elif python=$(awk -F'\t' -v v="$version" '$1 == v { print $2 }' <<<"$found") && [ -n "$python" ]; then
        if test_on "$version" "$python" "$@"; then passed+=("$version"); else failed+=("$version"); fi
    else
        echo "not on this machine"
    fi
done

say "passed: ${passed[*]:-none}"
[ ${#failed[@]} -eq 0 ] || die "failed: ${failed[*]}"
[ ${#passed[@]} -gt 0 ] || die "no interpreter was found"
