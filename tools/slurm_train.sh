#!/usr/bin/env bash
# Train under Slurm, with one task per GPU:
#   GPUS=16 GPUS_PER_NODE=8 tools/slurm_train.sh PARTITION JOB_NAME CONFIG [arguments of tools/train.py]
# Set SRUN_ARGS to pass more options to srun.
case "${1:-}" in -h | --help) sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p;}' "$0"; exit 0 ;; esac
exec bash "$(dirname "$0")/slurm.sh" train "$0" "$@"
