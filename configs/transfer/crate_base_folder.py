"""A template for your own recipe: CRATE-Base on images in folders, inheriting from a transfer config.

    python tools/train.py configs/transfer/crate_base_folder.py --load-from crate_base.pth \\
        --cfg-options data_root=/my/images

Without --load-from it trains from scratch.
"""

_base_ = ["folder.py"]

model = dict(
    type="ImageClassifier",
    backbone=dict(type="CRATE", arch="base", img_size=224, patch_size=16),
    head=dict(type="LinearHead", pool="cls"),
)
