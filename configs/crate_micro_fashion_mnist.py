"""A CRATE of 120,492 parameters on Fashion-MNIST, 16 patches of 7 x 7 pixels: about 9 minutes of processor time.

    python tools/train.py configs/crate_micro_fashion_mnist.py --cfg-options data_root=data

Result: 85.20, 85.34 and 85.36 % of the 10,000 test images after the last epoch (seeds 0, 1, 2). The package contains
the weights of seed 0.
"""

_base_ = [
    "_base_/models/crate.py",
    "_base_/datasets/fashion_mnist.py",
    "_base_/schedules/small_adamw.py",
    "_base_/default_runtime.py",
]

model = dict(
    backbone=dict(arch=dict(embed_dim=96, depth=4, num_heads=4), img_size=28, patch_size=7, in_channels=1),
    head=dict(num_classes=10),
    preprocessor=dict(mean=(0.2860,), std=(0.3530,)),
    label_smoothing=0.1,
)
# The data have this size. The model's file keeps the transform for images of other sizes.
same_size = dict(type="Resize", size=(28, 28))
val_dataloader = dict(dataset=dict(transforms=[same_size]))
test_dataloader = dict(dataset=dict(transforms=[same_size]))
train_cfg = dict(max_epochs=8)
