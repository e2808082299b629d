#!/usr/bin/env bash
# From nothing to a trained and evaluated CRATE: set up an environment if there is none, train CRATE-Tiny on
# scikit-learn's handwritten digits, evaluate its best checkpoint, and report what the model costs.
#   bash tools/quickstart.sh [work folder [further arguments of tools/train.py]]
set -euo pipefail
case "${1:-}" in -h | --help) sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p;}' "$0"; exit 0 ;; esac
[[ "${1:-}" != -* ]] || { echo "error: the first argument is the work folder, it is '$1': see --help" >&2; exit 2; }
work_dir=$(realpath -m -- "${1:-$(dirname "$0")/../work_dirs/quickstart}")
shift || true
. "$(dirname "$0")/setup_env.sh" ""
config=configs/crate_tiny_digits.py
start=$SECONDS

echo "== Train CRATE-Tiny on the digits (logs and checkpoints in $work_dir)"
rm -f "$work_dir"/best_*.pth  # of an earlier run
python tools/train.py "$config" --work-dir "$work_dir" "$@"
took=$((SECONDS - start))

echo "== Evaluate the best checkpoint on the held-out quarter"
best=$(ls "$work_dir"/best_*.pth)
python tools/test.py "$config" "$best" --work-dir "$work_dir/test" --json "$work_dir/figures.json"

echo "== What the model costs"
python tools/get_flops.py "$config" --depth 1

figures=$(python -c '
import json, sys
figures = json.load(open(sys.argv[1]))
print("{top1:.2f} % of {num_samples} test images right".format(**figures))
' "$work_dir/figures.json")

cat <<EOF
== Done: trained in $took s, $figures
Try next:
  tensorboard --logdir $work_dir
  python tools/train.py $config --cfg-options train_cfg.max_epochs=5 model.backbone.ista_lambda=0.2
  tools/dist_train.sh configs/crate_base_in1k.py 8 --amp --cfg-options data_root=/path/to/imagenet
EOF
