"""A small ViT pretrained on Fashion-MNIST by SimDINO; its backbone has 2.79 M multiply-adds for 32 x 32 pixels.

python tools/train.py configs/compare_simdino/vit.py --cfg-options data_root=data
"""

_base_ = ["../_base_/compare_simdino.py"]

model = dict(backbone=dict(type="ViT", arch=dict(embed_dim=56, depth=4, num_heads=4)))
