"""A small ViT on Fashion-MNIST, 16 patches of 7 x 7 pixels: 20 to 32 minutes on one CPU core.

    python tools/train.py configs/vit_mini_fashion_mnist.py --cfg-options data_root=data

Result: 87.9 to 88.4 % of the 10,000 test images after the last epoch (seeds 0, 1, 2).

The CRATE of crate_mini_fashion_mnist.py has as many parameters and the same recipe.
"""

_base_ = [
    "_base_/models/vit.py",
    "_base_/datasets/fashion_mnist.py",
    "_base_/schedules/small_adamw.py",
    "_base_/default_runtime.py",
]

model = dict(
    backbone=dict(arch=dict(embed_dim=96, depth=6, num_heads=3), img_size=28, patch_size=7, in_channels=1),
    head=dict(num_classes=10, pool="mean"),
    preprocessor=dict(mean=(0.2860,), std=(0.3530,)),
    label_smoothing=0.1,
)
