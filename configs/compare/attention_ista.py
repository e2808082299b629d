"""Softmax attention in the place of MSSA, with ISTA, on Fashion-MNIST, 8.3 M multiply-adds.

    python tools/train.py configs/compare/attention_ista.py --cfg-options data_root=data

The other configs of this folder have the same recipe and as many multiply-adds, within 10 %. Results are in
configs/RESULTS.md.
"""

_base_ = ["../_base_/compare.py"]

model = dict(
    backbone=dict(type="CRATE", arch=dict(embed_dim=112, depth=6, num_heads=4), compress=dict(type="SoftmaxAttention"))
)
