#!/usr/bin/env bash
# Evaluate under Slurm, with one task per GPU:
#   GPUS=8 tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [arguments of tools/test.py]
# Set SRUN_ARGS to pass more options to srun.
case "${1:-}" in -h | --help) sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p;}' "$0"; exit 0 ;; esac
exec bash "$(dirname "$0")/slurm.sh" test "$0" "$@"
