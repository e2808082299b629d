"""A small ToST on Fashion-MNIST, 7.9 M multiply-adds.

python tools/train.py configs/compare/tost.py --cfg-options data_root=data
"""

_base_ = ["../_base_/compare.py"]

model = dict(
    backbone=dict(type="ToST", arch=dict(embed_dim=80, depth=6, num_heads=4)), head=dict(norm_eps=1e-6, init_std=0.02)
)
