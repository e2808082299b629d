#!/usr/bin/env bash
# Shared by slurm_train.sh and slurm_test.sh. Run those instead; their --help lists the arguments.
#   tools/slurm.sh train|test SCRIPT [arguments of SCRIPT]
set -euo pipefail
case "${1:-}" in -h | --help) sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p;}' "$0"; exit 0 ;; esac
[[ "${1:-}" =~ ^(train|test)$ && $# -ge 2 ]] || { echo "error: run slurm_train.sh or slurm_test.sh" >&2; exit 2; }
tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mode=$1 script=$2
shift 2
fail() { printf 'error: %s\n' "$(printf %s "$*" | tr '[:cntrl:]' '?')" >&2; exit 2; }

options="[GPUS=8] [GPUS_PER_NODE=8] [CPUS_PER_TASK=12]"
if [ "$mode" = test ]; then
  [ $# -ge 4 ] || fail "usage: $options $script PARTITION JOB_NAME CONFIG CHECKPOINT [arguments of tools/test.py]"
  files=("$3" "$4")
else
  [ $# -ge 3 ] || fail "usage: $options $script PARTITION JOB_NAME CONFIG [arguments of tools/train.py]"
  files=("$3")
fi
partition=$1 job_name=$2
shift $((2 + ${#files[@]}))
for name in GPUS GPUS_PER_NODE CPUS_PER_TASK; do
  [[ -z "${!name:-}" || "${!name}" =~ ^[1-9][0-9]{0,5}$ ]] ||
    fail "$name must be a positive integer, got '${!name}'"
done
gpus=${GPUS:-8}
per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
# shellcheck disable=SC2086  # SRUN_ARGS holds several options
exec srun --partition="$partition" --job-name="$job_name" --ntasks="$gpus" --ntasks-per-node="$per_node" \
  --gres="gpu:$per_node" --cpus-per-task="${CPUS_PER_TASK:-12}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
  python -u "$tools/$mode.py" "${files[@]}" --launcher slurm "$@"
