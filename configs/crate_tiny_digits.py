"""CRATE-Tiny on scikit-learn's handwritten digits: nothing to download, minutes on two CPU cores.

bash tools/quickstart.sh
python tools/train.py configs/crate_tiny_digits.py
"""

_base_ = [
    "_base_/models/crate.py",
    "_base_/datasets/digits.py",
    "_base_/schedules/in1k_lion.py",
    "_base_/default_runtime.py",
]

model = dict(
    backbone=dict(arch="tiny", img_size=8, patch_size=2, in_channels=1),
    head=dict(num_classes=10, pool="mean"),
    preprocessor=dict(mean=(0.5,), std=(0.5,)),
    label_smoothing=0.1,
)
global_batch_size = 64
train_cfg = dict(max_epochs=20)
