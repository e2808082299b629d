"""A CRATE of 16,098 parameters on the digits, for tests: two epochs take seconds.

python tools/train.py configs/debug.py
"""

_base_ = [
    "_base_/models/crate.py",
    "_base_/datasets/digits.py",
    "_base_/schedules/in1k_lion.py",
    "_base_/default_runtime.py",
]

model = dict(
    backbone=dict(arch=dict(embed_dim=48, depth=2, num_heads=3), img_size=8, patch_size=2, in_channels=1),
    head=dict(num_classes=10),
    preprocessor=dict(mean=(0.5,), std=(0.5,)),
    label_smoothing=0.1,
)
global_batch_size = 128
optim_wrapper = dict(optimizer=dict(lr=1e-3))
train_cfg = dict(max_epochs=2)
