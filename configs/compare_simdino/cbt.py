"""A small CBT pretrained on Fashion-MNIST by SimDINO; its backbone has 2.85 M multiply-adds for 32 x 32 pixels.

python tools/train.py configs/compare_simdino/cbt.py --cfg-options data_root=data
"""

_base_ = ["../_base_/compare_simdino.py"]

model = dict(
    backbone=dict(
        type="CBT", arch=dict(embed_dim=80, depth=4, num_heads=4), compress=dict(type="CBSA", side=2, shifted=False)
    )
)
