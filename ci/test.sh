#!/usr/bin/env bash
# The whole test-suite, with its own set-up. Arguments go to pytest.
source "$(dirname "$0")/common.sh"
ci/setup.sh test
export CYSESSION_TEST_NOTHING_MISSING=1 # what cannot be imported is a failure, and no skip
exec "$VENV/bin/python" -m pytest "$@" </dev/null
