#!/usr/bin/env bash
# Evaluate on several GPUs of this node, or on its CPUs where there is none:
#   tools/dist_test.sh CONFIG CHECKPOINT GPUS [arguments of tools/test.py]
# Several nodes: as for dist_train.sh.
exec bash "$(dirname "$0")/launch.sh" test "$0" "$@"
