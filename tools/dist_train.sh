#!/usr/bin/env bash
# Train on several GPUs of this node, or on its CPUs where there is none:
#   tools/dist_train.sh CONFIG GPUS [arguments of tools/train.py]
# On several nodes run on each, with the same MASTER_ADDR and PORT:
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 PORT=29500 tools/dist_train.sh CONFIG 8
# Where nodes may leave and join, run on each, with the same MASTER_ADDR, PORT and work folder:
#   NNODES=1:2 MASTER_ADDR=10.0.0.1 PORT=29500 tools/dist_train.sh CONFIG 8 --resume
# When a process dies, all are ended; with MAX_RESTARTS=3 they are started again, and go on from the newest checkpoint.
case "${1:-}" in -h | --help) sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p;}' "$0"; exit 0 ;; esac
exec bash "$(dirname "$0")/launch.sh" train "$0" "$@"
