"""MSSA with an MLP instead of ISTA on Fashion-MNIST, 8.4 M multiply-adds.

python tools/train.py configs/compare/mssa_mlp.py --cfg-options data_root=data
"""

_base_ = ["../_base_/compare.py"]

model = dict(
    backbone=dict(type="CRATE", arch=dict(embed_dim=88, depth=6, num_heads=4), sparsify=dict(type="MLP"), residual=True)
)
