#!/usr/bin/env bash
# Set up an environment if there is none, then run the tests:
#   bash tools/run_tests.sh [arguments of pytest]
set -euo pipefail
. "$(dirname "$0")/setup_env.sh" test
exec python -m pytest "$@"
