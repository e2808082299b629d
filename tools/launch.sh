#!/usr/bin/env bash
# What dist_train.sh and dist_test.sh share: start these, whose --help says what they take.
#   tools/launch.sh train|test SCRIPT [arguments of SCRIPT]
set -euo pipefail
case "${1:-}" in -h | --help) sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p;}' "$0"; exit 0 ;; esac
[[ "${1:-}" =~ ^(train|test)$ && $# -ge 2 ]] || { echo "error: launch.sh is started by others: see --help" >&2; exit 2; }
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
for name in NODE_RANK PORT MAX_RESTARTS GRACE_SECONDS; do
  [[ -z "${!name:-}" || "${!name}" =~ ^[0-9]{1,9}$ ]] || fail "$name must be a whole number, it is '${!name}'"
done
nodes_are="NNODES must be a whole number of at least 1, or MIN:MAX with 1 <= MIN <= MAX, it is '${NNODES:-}'"
[[ "${NNODES:-1}" =~ ^[0-9]{1,9}(:[0-9]{1,9})?$ ]] || fail "$nodes_are"
[[ "${MASTER_ADDR:-}" =~ ^[A-Za-z0-9._:%-]*$ ]] || fail "MASTER_ADDR must be a host, it is '$MASTER_ADDR'"
nodes=${NNODES:-1} restarts=${MAX_RESTARTS:-0}
least=$((10#${nodes%:*})) most=$((10#${nodes#*:}))
node_rank=$((10#${NODE_RANK:-0})) address=${MASTER_ADDR:-127.0.0.1} port=${PORT:-29500}
[ "$least" -ge 1 ] && [ "$least" -le "$most" ] || fail "$nodes_are"
if [[ "$nodes" == *:* ]]; then
  run_id=${RUN_ID:-${SLURM_JOB_ID:-port$port}} resumes="" previous=""
  [ "$mode" = train ] || fail "NNODES=$nodes is for training: an evaluation needs a fixed number of nodes"
  [[ "$run_id" =~ ^[A-Za-z0-9._-]{1,100}$ ]] || fail "RUN_ID must be a word (A-Z a-z 0-9 . _ -), it is '$run_id'"
  [ -n "${MASTER_ADDR:-}" ] || fail "NNODES=$nodes needs MASTER_ADDR (the node that the others meet at) as well"
  [ -z "${NODE_RANK:-}" ] || fail "NNODES=$nodes numbers the nodes itself: leave out NODE_RANK, or name one NNODES"
  # A node that joins cannot know what the others have done: all look for the newest checkpoint, in the first start too.
  for argument in "$@" --; do
    [[ "$previous" != --resume || "$argument" != -* ]] || resumes=1
    previous=$argument
  done
  [ -n "$resumes" ] || fail "NNODES=$nodes needs --resume, without a checkpoint's name: when a node leaves or joins," \
    "all go on from the newest checkpoint of the work folder, or from the start where there is no checkpoint"
  restarts=${MAX_RESTARTS:-3}
  export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1  # a node that joins would wait for an address told in an earlier round
elif [ "$most" -gt 1 ] && [ -z "${MASTER_ADDR:-}" -o -z "${NODE_RANK:-}" ]; then
  fail "NNODES=$nodes needs NODE_RANK (0 to $((most - 1)), one a node) and MASTER_ADDR (the first node) as well"
fi
[ "$node_rank" -lt "$most" ] || fail "NODE_RANK $node_rank must be one of 0 to $((most - 1)) (NNODES=$nodes)"
here=$(python -c 'import torch; print(torch.cuda.device_count())') || fail "python finds no working torch: see README.md"
if [ "$here" -gt 0 ] && [ "$gpus" -gt "$here" ]; then
  needed=$(((gpus + here - 1) / here))
  fail "$gpus GPUs were asked for, this node has $here. Use several nodes, each running" \
    "NNODES=$needed NODE_RANK=<0, 1, ...> MASTER_ADDR=<first node> PORT=$port" \
    "$script ${files[*]} $(((gpus + needed - 1) / needed))"
fi

# A single node needs no agreed port: torchrun.py finds a free one, so that several runs fit on a machine. It is not
# --standalone, whose rendezvous listens on all interfaces and unpickles what any process puts there.
if [[ "$nodes" == *:* ]]; then
  meeting=(--nnodes "$least:$most" --rdzv-backend c10d --rdzv-endpoint "$address:$port" --rdzv-id "$run_id")
elif [ "$most" = 1 ] && [ -z "${PORT:-}" ]; then
  meeting=(--nnodes 1 --node-rank 0 --master-addr 127.0.0.1 --master-port 0)
else
  meeting=(--nnodes "$most" --node-rank "$node_rank" --master-addr "$address" --master-port "$port")
fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} MKL_NUM_THREADS=${MKL_NUM_THREADS:-1}
# Slurm's warning before a preemption reaches the processes as well as the other signals do. Newer versions of torchrun
# read the second variable, and overwrite the first.
export TORCHELASTIC_SIGNALS_TO_HANDLE=${TORCHELASTIC_SIGNALS_TO_HANDLE:-SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1}
export PET_SIGNALS_TO_HANDLE=$TORCHELASTIC_SIGNALS_TO_HANDLE
exec python "$tools/torchrun.py" "${meeting[@]}" --max-restarts "$restarts" --nproc-per-node "$gpus" \
  "$tools/$mode.py" "${files[@]}" --launcher pytorch "$@"
