"""Softmax attention instead of MSSA, with ISTA, on Fashion-MNIST, 8.3 M multiply-adds.

python tools/train.py configs/compare/attention_ista.py --cfg-options data_root=data
"""

_base_ = ["../_base_/compare.py"]

model = dict(
    backbone=dict(type="CRATE", arch=dict(embed_dim=112, depth=6, num_heads=4), compress=dict(type="SoftmaxAttention"))
)
