#!/usr/bin/env bash
# Set up an environment if there is none, then run the tests:
#   bash tools/run_tests.sh [arguments of pytest]
#   bash tools/run_tests.sh -m "not slow"    what belongs to each edit: no long proof from end to end
#   bash tools/run_tests.sh -m gpu           what needs a GPU, which is hidden from all other tests
# Two tests run at a time, the long ones first; TEST_WORKERS=1 runs one.
set -euo pipefail
case "${1:-}" in -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; exit ;; esac
. "$(dirname "$0")/setup_env.sh" test
exec python -m pytest -n "${TEST_WORKERS:-2}" --dist load --maxschedchunk 2 "$@"
