#!/usr/bin/env bash
# The documentation as a site in build/site; every warning is an error. The code in it is run by tests/docs.
source "$(dirname "$0")/common.sh"
ci/setup.sh docs

say "building build/site"
rm -rf build/site
# The theme's own advertisement goes to stderr without it.
NO_MKDOCS_2_WARNING=1 "$VENV/bin/python" -m mkdocs build --quiet --strict </dev/null
[ -s build/site/index.html ] || die "the site has no first page"
if grep -rlE '(src|href)="https?://[^"]*\.(js|css|woff2?)"' build/site --include='*.html' | head -n 3 | grep .; then
    die "these pages fetch something from elsewhere"
fi
say "build/site/index.html"
