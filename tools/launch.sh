#!/usr/bin/env bash
# Shared by dist_train.sh and dist_test.sh. Run those instead; their --help lists the arguments.
#   tools/launch.sh train|test SCRIPT [arguments of SCRIPT]
set -euo pipefail
case "${1:-}" in -h | --help) sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p;}' "$0"; exit 0 ;; esac
[[ "${1:-}" =~ ^(train|test)$ && $# -ge 2 ]] || { echo "error: run dist_train.sh or dist_test.sh" >&2; exit 2; }
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
[[ "$gpus" =~ ^[1-9][0-9]*$ ]] || fail "GPUS must be a positive integer, got '$gpus'"

# Validate as text first: shell arithmetic would execute code in these values.
for name in NODE_RANK PORT MAX_RESTARTS GRACE_SECONDS; do
  [[ -z "${!name:-}" || "${!name}" =~ ^[0-9]{1,9}$ ]] || fail "$name must be a non-negative integer, got '${!name}'"
done
nnodes_error="NNODES must be a positive integer, or MIN:MAX with 1 <= MIN <= MAX, got '${NNODES:-}'"
[[ "${NNODES:-1}" =~ ^[0-9]{1,9}(:[0-9]{1,9})?$ ]] || fail "$nnodes_error"
[[ "${MASTER_ADDR:-}" =~ ^[A-Za-z0-9._:%-]*$ ]] || fail "MASTER_ADDR must be a host, got '$MASTER_ADDR'"
nodes=${NNODES:-1} restarts=${MAX_RESTARTS:-0}
min_nodes=$((10#${nodes%:*})) max_nodes=$((10#${nodes#*:}))
node_rank=$((10#${NODE_RANK:-0})) address=${MASTER_ADDR:-127.0.0.1} port=${PORT:-29500}
[ "$min_nodes" -ge 1 ] && [ "$min_nodes" -le "$max_nodes" ] || fail "$nnodes_error"
if [[ "$nodes" == *:* ]]; then
  run_id=${RUN_ID:-${SLURM_JOB_ID:-port$port}} resumes="" previous=""
  [ "$mode" = train ] || fail "NNODES=$nodes is for training: an evaluation needs a fixed number of nodes"
  [[ "$run_id" =~ ^[A-Za-z0-9._-]{1,100}$ ]] || fail "RUN_ID may contain only A-Z a-z 0-9 . _ -, got '$run_id'"
  [ -n "${MASTER_ADDR:-}" ] || fail "NNODES=$nodes needs MASTER_ADDR (the rendezvous node) as well"
  [ -z "${NODE_RANK:-}" ] || fail "NNODES=$nodes numbers the nodes itself: leave out NODE_RANK, or set NNODES=<number>"
  # A joining node cannot know whether training has started, so every start looks for the newest checkpoint.
  for argument in "$@" --; do
    [[ "$previous" != --resume || "$argument" != -* ]] || resumes=1
    previous=$argument
  done
  [ -n "$resumes" ] || fail "NNODES=$nodes needs --resume, without a checkpoint's name: when a node leaves or joins," \
    "all resume from the newest checkpoint of the work directory, or start a new run if there is none"
  restarts=${MAX_RESTARTS:-3}
  export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1  # a joining node would wait for an address published in an earlier round
elif [ "$max_nodes" -gt 1 ] && [ -z "${MASTER_ADDR:-}" -o -z "${NODE_RANK:-}" ]; then
  fail "NNODES=$nodes needs NODE_RANK (0 to $((max_nodes - 1)), one per node) and MASTER_ADDR (the first node) as well"
fi
[ "$node_rank" -lt "$max_nodes" ] || fail "NODE_RANK must be 0 to $((max_nodes - 1)) with NNODES=$nodes, got $node_rank"
available=$(python -c 'import torch; print(torch.cuda.device_count())') ||
  fail "python cannot import torch: see README.md"
if [ "$available" -gt 0 ] && [ "$gpus" -gt "$available" ]; then
  needed=$(((gpus + available - 1) / available))
  fail "this node has $available GPUs, fewer than $gpus. Use several nodes, each running" \
    "NNODES=$needed NODE_RANK=<0, 1, ...> MASTER_ADDR=<first node> PORT=$port" \
    "$script ${files[*]} $(((gpus + needed - 1) / needed))"
fi

# On a single node, torchrun.py selects a free port, so that several runs fit on a machine. Do not use --standalone: its
# rendezvous listens on all interfaces and unpickles data from any process.
if [[ "$nodes" == *:* ]]; then
  rendezvous=(--nnodes "$min_nodes:$max_nodes" --rdzv-backend c10d --rdzv-endpoint "$address:$port" --rdzv-id "$run_id")
elif [ "$max_nodes" = 1 ] && [ -z "${PORT:-}" ]; then
  rendezvous=(--nnodes 1 --node-rank 0 --master-addr 127.0.0.1 --master-port 0)
else
  rendezvous=(--nnodes "$max_nodes" --node-rank "$node_rank" --master-addr "$address" --master-port "$port")
fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} MKL_NUM_THREADS=${MKL_NUM_THREADS:-1}
# Forward Slurm's preemption warning (SIGUSR1) to the processes, too. Newer versions of torchrun read the second
# variable and overwrite the first.
export TORCHELASTIC_SIGNALS_TO_HANDLE=${TORCHELASTIC_SIGNALS_TO_HANDLE:-SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1}
export PET_SIGNALS_TO_HANDLE=$TORCHELASTIC_SIGNALS_TO_HANDLE
exec python "$tools/torchrun.py" "${rendezvous[@]}" --max-restarts "$restarts" --nproc-per-node "$gpus" \
  "$tools/$mode.py" "${files[@]}" --launcher pytorch "$@"
