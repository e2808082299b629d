"""A small ToST pretrained on Fashion-MNIST by SimDINO; its backbone has 2.88 M multiply-adds for 32 x 32 pixels.

python tools/train.py configs/compare_simdino/tost.py --cfg-options data_root=data
"""

_base_ = ["../_base_/compare_simdino.py"]

model = dict(backbone=dict(type="ToST", arch=dict(embed_dim=56, depth=4, num_heads=4)))
