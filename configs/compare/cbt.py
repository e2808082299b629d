"""A small CBT on Fashion-MNIST: CBSA and ISTA, 7.8 M multiply-adds.

    python tools/train.py configs/compare/cbt.py --cfg-options data_root=data

The 16 patches have 4 representatives; the published models have 64 for 196. Only patches are averaged, no CLS token.
"""

_base_ = ["../_base_/compare.py"]

model = dict(
    backbone=dict(
        type="CBT",
        arch=dict(embed_dim=116, depth=6, num_heads=4),
        compress=dict(type="CBSA", side=2, shifted=False),
    )
)
