#!/usr/bin/env bash
# Train under Slurm, one task a GPU:
#   GPUS=16 GPUS_PER_NODE=8 tools/slurm_train.sh PARTITION JOB_NAME CONFIG [arguments of tools/train.py]
# More options for srun go in SRUN_ARGS.
set -euo pipefail
case "${1:-}" in -h | --help) sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p;}' "$0"; exit 0 ;; esac
if [ $# -lt 3 ]; then
  echo "error: usage: [GPUS=8] [GPUS_PER_NODE=8] [CPUS_PER_TASK=12] $0 PARTITION JOB_NAME CONFIG [arguments]" >&2
  exit 2
fi
partition=$1 job_name=$2 config=$3
shift 3
for name in GPUS GPUS_PER_NODE CPUS_PER_TASK; do
  if [[ -n "${!name:-}" && ! "${!name}" =~ ^[1-9][0-9]{0,5}$ ]]; then
    echo "error: $name must be a whole number of at least 1, it is '$(printf %s "${!name}" | tr '[:cntrl:]' '?')'" >&2
    exit 2
  fi
done
gpus=${GPUS:-8}
per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
# shellcheck disable=SC2086  # SRUN_ARGS holds several options
exec srun --partition="$partition" --job-name="$job_name" --ntasks="$gpus" --ntasks-per-node="$per_node" \
  --gres="gpu:$per_node" --cpus-per-task="${CPUS_PER_TASK:-12}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
  python -u "$(dirname "$0")/train.py" "$config" --launcher slurm "$@"
