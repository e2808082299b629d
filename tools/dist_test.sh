#!/usr/bin/env bash
# Evaluate on several GPUs of this node, or on its CPUs where there is none:
#   tools/dist_test.sh CONFIG CHECKPOINT GPUS [arguments of tools/test.py]
# Several nodes: as for dist_train.sh, with a fixed number of them.
case "${1:-}" in -h | --help) sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p;}' "$0"; exit 0 ;; esac
exec bash "$(dirname "$0")/launch.sh" test "$0" "$@"
