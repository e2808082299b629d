"""A small AoT on Fashion-MNIST: MSSA alone, 7.8 M multiply-adds.

    python tools/train.py configs/compare/aot.py --cfg-options data_root=data

For the paper's variant with multi-head self-attention, set model.backbone.compress.type=SoftmaxAttention and a width
of 132.
"""

_base_ = ["../_base_/compare.py"]

model = dict(backbone=dict(type="AoT", arch=dict(embed_dim=184, depth=6, num_heads=4)))
