#!/usr/bin/env bash
# Set up an environment if there is none, train a small CRATE on scikit-learn's handwritten digits, evaluate the best
# checkpoint, report the model's cost, and write a page that compares its layers with those of an untrained model.
#   bash tools/quickstart.sh [WORK_DIR [arguments of tools/train.py]]
set -euo pipefail
case "${1:-}" in -h | --help) sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p;}' "$0"; exit 0 ;; esac
[[ "${1:-}" != -* ]] || { echo "error: expected the work directory first, got '$1': see --help" >&2; exit 2; }
work_dir=$(realpath -m -- "${1:-$(dirname "$0")/../work_dirs/quickstart}")
shift || true
. "$(dirname "$0")/setup_env.sh" ""
config=configs/crate_mini_digits.py
start=$SECONDS

echo "== Train a small CRATE on the digits (logs and checkpoints in $work_dir)"
rm -f "$work_dir"/best_*.pth  # of an earlier run
python tools/train.py "$config" --work-dir "$work_dir" "$@"
seconds=$((SECONDS - start))

echo "== Evaluate the best checkpoint on the held-out 25 %"
best=$(ls "$work_dir"/best_*.pth)
python tools/test.py "$config" "$best" --work-dir "$work_dir/test" --json "$work_dir/figures.json"

echo "== Report the model's cost"
python tools/get_flops.py "$config" --depth 1

echo "== Write the page that compares the model with an untrained one"
page=$work_dir/report.html
python tools/report.py "$config" random "$best" --out "$page"

accuracy=$(python -c '
import json, sys
metrics = json.load(open(sys.argv[1]))
print("{top1:.2f} % of {num_samples} test images correct".format(**metrics))
' "$work_dir/figures.json")

cat <<EOF
== Done: trained in $seconds s, $accuracy
Open in a browser:
  $page
Try next:
  tensorboard --logdir $work_dir
  python tools/train.py $config --cfg-options train_cfg.max_epochs=5 model.backbone.ista_lambda=0.2
  tools/dist_train.sh configs/crate_base_in1k.py 8 --amp --cfg-options data_root=/path/to/imagenet
EOF
