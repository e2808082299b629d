"""A small CRATE on scikit-learn's handwritten digits: no download, 88 s of processor time.

    bash tools/quickstart.sh
    python tools/train.py configs/crate_mini_digits.py

Result: 98.89 to 99.11 % of the 450 test images after the last epoch (seeds 0, 1, 2). Seed 0's weights are packaged.

The images are enlarged from 8 x 8 to 32 x 32 pixels and split into 16 patches, so that attention maps have 16 cells.
The head reads the class token only.
"""

_base_ = [
    "_base_/models/crate.py",
    "_base_/datasets/digits.py",
    "_base_/schedules/in1k_lion.py",
    "_base_/default_runtime.py",
]

model = dict(
    backbone=dict(arch=dict(embed_dim=96, depth=4, num_heads=4), img_size=32, patch_size=8, in_channels=1),
    head=dict(num_classes=10),
    preprocessor=dict(mean=(0.3053,), std=(0.3758,)),
    label_smoothing=0.1,
)

enlarge = dict(type="Resize", size=(32, 32))
wobble = dict(type="RandomAffine", degrees=10, translate=(0.0625, 0.0625), scale=(0.9, 1.1), interpolation="bilinear")
train_dataloader = dict(dataset=dict(transforms=[enlarge, wobble]))
val_dataloader = dict(dataset=dict(transforms=[enlarge]))
test_dataloader = dict(dataset=dict(transforms=[enlarge]))

global_batch_size = 64
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type="AdamW", lr=1e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = dict(warmup=4)
train_cfg = dict(max_epochs=40)
# Log R^c and sparsity of each layer after the first and every tenth epoch, also to TensorBoard.
default_hooks = dict(white_box=dict(type="WhiteBoxHook", interval=10, num_images=64))
