"""A small ViT on Fashion-MNIST, 8.3 M multiply-adds.

python tools/train.py configs/compare/vit.py --cfg-options data_root=data
"""

_base_ = ["../_base_/compare.py"]

model = dict(
    backbone=dict(type="ViT", arch=dict(embed_dim=80, depth=6, num_heads=4)), head=dict(norm=False)
)  # the backbone ends with a LayerNorm
