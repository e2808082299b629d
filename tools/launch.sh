#!/usr/bin/env bash
# What dist_train.sh and dist_test.sh share: launch.sh train|test SCRIPT [its arguments]
set -euo pipefail
tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mode=$1 script=$2
shift 2
fail() { printf 'error: %s\n' "$(printf %s "$*" | tr '[:cntrl:]' '?')" >&2; exit 2; }

if [ "$mode" = test ]; then
  [ $# -ge 3 ] || fail "usage: $script CONFIG CHECKPOINT GPUS [arguments of tools/test.py]"
  files=("$1" "$2") gpus=$3
  shift 3
else
  [ $# -ge 2 ] || fail "usage: $script CONFIG GPUS [arguments of tools/train.py]"
  files=("$1") gpus=$2
  shift 2
fi
[[ "$gpus" =~ ^[1-9][0-9]*$ ]] || fail "GPUS must be a whole number of at least 1, got '$gpus'"

# Looked at as text before any of them reaches shell arithmetic, which would run what is in it.
for name in NNODES NODE_RANK PORT MAX_RESTARTS GRACE_SECONDS; do
  [[ -z "${!name:-}" || "${!name}" =~ ^[0-9]{1,9}$ ]] || fail "$name must be a whole number, it is '${!name}'"
done
[[ "${MASTER_ADDR:-}" =~ ^[A-Za-z0-9._:%-]*$ ]] || fail "MASTER_ADDR must be a host, it is '$MASTER_ADDR'"
nnodes=$((10#${NNODES:-1})) node_rank=$((10#${NODE_RANK:-0}))
address=${MASTER_ADDR:-127.0.0.1} port=${PORT:-29500}
if [ "$nnodes" -gt 1 ] && [ -z "${MASTER_ADDR:-}" -o -z "${NODE_RANK:-}" ]; then
  fail "NNODES=$nnodes needs NODE_RANK (0 to $((nnodes - 1)), one a node) and MASTER_ADDR (the first node) as well"
fi
[ "$node_rank" -lt "$nnodes" ] || fail "NODE_RANK $node_rank must be one of 0 to $((nnodes - 1)) (NNODES=$nnodes)"
here=$(python -c 'import torch; print(torch.cuda.device_count())') || fail "python finds no working torch: see README.md"
if [ "$here" -gt 0 ] && [ "$gpus" -gt "$here" ]; then
  nodes=$(((gpus + here - 1) / here))
  fail "$gpus GPUs were asked for, this node has $here. Use several nodes, each running" \
    "NNODES=$nodes NODE_RANK=<0, 1, ...> MASTER_ADDR=<first node> PORT=$port" \
    "$script ${files[*]} $(((gpus + nodes - 1) / nodes))"
fi

# A single node needs no agreed port: torchrun finds a free one, so that several runs fit on a machine.
if [ "$nnodes" = 1 ] && [ -z "${PORT:-}" ]; then
  meeting=(--standalone)
else
  meeting=(--nnodes "$nnodes" --node-rank "$node_rank" --master-addr "$address" --master-port "$port")
fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} MKL_NUM_THREADS=${MKL_NUM_THREADS:-1}
# Slurm's warning before a preemption reaches the processes as well as the other signals do. Newer versions of torchrun
# read the second variable, and overwrite the first.
export TORCHELASTIC_SIGNALS_TO_HANDLE=${TORCHELASTIC_SIGNALS_TO_HANDLE:-SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1}
export PET_SIGNALS_TO_HANDLE=$TORCHELASTIC_SIGNALS_TO_HANDLE
exec python "$tools/torchrun.py" "${meeting[@]}" --max-restarts "${MAX_RESTARTS:-0}" --nproc-per-node "$gpus" \
  "$tools/$mode.py" "${files[@]}" --launcher pytorch "$@"
