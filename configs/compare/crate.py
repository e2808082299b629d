"""A small CRATE on Fashion-MNIST: MSSA and ISTA, 8.3 M multiply-adds.

python tools/train.py configs/compare/crate.py --cfg-options data_root=data
"""

_base_ = ["../_base_/compare.py"]

model = dict(backbone=dict(type="CRATE", arch=dict(embed_dim=136, depth=6, num_heads=4)))
