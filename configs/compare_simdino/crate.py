"""A small CRATE pretrained on Fashion-MNIST by SimDINO; its backbone has 2.91 M multiply-adds for 32 x 32 pixels.

python tools/train.py configs/compare_simdino/crate.py --cfg-options data_root=data
"""

_base_ = ["../_base_/compare_simdino.py"]

model = dict(backbone=dict(type="CRATE", arch=dict(embed_dim=96, depth=4, num_heads=4)))
