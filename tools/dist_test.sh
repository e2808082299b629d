#!/usr/bin/env bash
# Evaluate on several GPUs of this node, or on its CPUs if it has no GPU:
#   tools/dist_test.sh CONFIG CHECKPOINT GPUS [arguments of tools/test.py]
# For several nodes, see dist_train.sh; the number of nodes is fixed.
case "${1:-}" in -h | --help) sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p;}' "$0"; exit 0 ;; esac
exec bash "$(dirname "$0")/launch.sh" test "$0" "$@"
