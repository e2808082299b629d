#!/usr/bin/env bash
# Set up an environment if there is none, then run the tests:
#   bash tools/run_tests.sh [arguments of pytest]
#   bash tools/run_tests.sh -m "not slow"    without the long end-to-end tests; run this after each edit
#   bash tools/run_tests.sh -m gpu           only the tests that need a GPU; all other tests run on the CPU
# Two tests run in parallel, long tests first; with TEST_WORKERS=1, tests run one by one.
# Tests of a file stay together, so that they share its models and data.
set -euo pipefail
case "${1:-}" in -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; exit ;; esac
. "$(dirname "$0")/setup_env.sh" test
unset PYTHONDONTWRITEBYTECODE # else pytest rewrites every assertion anew in each run
exec python -m pytest -n "${TEST_WORKERS:-2}" --dist worksteal "$@"
