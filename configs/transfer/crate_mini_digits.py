"""The small CRATE of Fashion-MNIST fine-tuned on scikit-learn's digits: half a minute on one CPU core.

    python tools/train.py configs/transfer/crate_mini_digits.py --load-from crate_mini.pth

crate_mini.pth stands for the last checkpoint of crate_mini_fashion_mnist.py. Without --load-from the same config
trains from scratch; --linear-probe trains the head alone. The README has the results.
"""

_base_ = ["../_base_/models/crate.py", "../_base_/transfer/digits.py"]

model = dict(
    backbone=dict(arch=dict(embed_dim=192, depth=6, num_heads=6), img_size=28, patch_size=7, in_channels=1),
    head=dict(num_classes=10, pool="mean"),
    preprocessor=dict(mean=(0.3053,), std=(0.3758,)),
    label_smoothing=0.1,
)
