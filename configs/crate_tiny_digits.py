"""CRATE-Tiny on scikit-learn's handwritten digits: no download, about two minutes on two CPU cores.

    bash tools/quickstart.sh
    python tools/train.py configs/crate_tiny_digits.py

Result: 98.9 to 99.6 % of the 450 test images after the last epoch (seeds 0, 1, 2).

The images are enlarged from 8 x 8 to 16 x 16 pixels and split into four patches, because the LayerNorm
of a patch removes its contrast, which is most of the information in 2 x 2 original pixels.
"""

_base_ = [
    "_base_/models/crate.py",
    "_base_/datasets/digits.py",
    "_base_/schedules/in1k_lion.py",
    "_base_/default_runtime.py",
]

model = dict(
    backbone=dict(arch="tiny", img_size=16, patch_size=8, in_channels=1),
    head=dict(num_classes=10, pool="mean"),
    preprocessor=dict(mean=(0.3053,), std=(0.3758,)),
    label_smoothing=0.1,
)

enlarge = dict(type="Resize", size=16)
wobble = dict(type="RandomAffine", degrees=10, translate=(0.0625, 0.0625), scale=(0.9, 1.1), interpolation="bilinear")
train_dataloader = dict(dataset=dict(transforms=[enlarge, wobble]))
val_dataloader = dict(dataset=dict(transforms=[enlarge]))
test_dataloader = dict(dataset=dict(transforms=[enlarge]))

global_batch_size = 64
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type="AdamW", lr=5e-4, weight_decay=0.05),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = dict(warmup=4)
train_cfg = dict(max_epochs=40)
# Log R^c and sparsity of each layer after the first and every tenth epoch, also to TensorBoard.
default_hooks = dict(white_box=dict(type="WhiteBoxHook", interval=10, num_images=64))
