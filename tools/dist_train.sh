#!/usr/bin/env bash
# Train on several GPUs of this node, or on its CPUs if it has no GPU:
#   tools/dist_train.sh CONFIG GPUS [arguments of tools/train.py]
# On several nodes, run this on each, with the same MASTER_ADDR and PORT:
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 PORT=29500 tools/dist_train.sh CONFIG 8
# If nodes may leave and join, run this on each, with the same MASTER_ADDR, PORT and work directory:
#   NNODES=1:2 MASTER_ADDR=10.0.0.1 PORT=29500 tools/dist_train.sh CONFIG 8 --resume
# If a process dies, all processes are stopped. With MAX_RESTARTS=3, they restart and resume from the newest checkpoint.
case "${1:-}" in -h | --help) sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p;}' "$0"; exit 0 ;; esac
exec bash "$(dirname "$0")/launch.sh" train "$0" "$@"
