#!/usr/bin/env bash
# The whole test-suite, with its own set-up. Arguments go to pytest.
source "$(dirname "$0")/common.sh"
ci/setup.sh test
exec "$VENV/bin/python" -m pytest "$@" </dev/null
