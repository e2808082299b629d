"""A small CBT on Fashion-MNIST: CBSA and ISTA, 7.8 M multiply-adds.

    python tools/train.py configs/compare/cbt.py --cfg-options data_root=data

16 patches have 4 representatives, averages of the patches alone; the published models have 64 of 196 patches.
"""

_base_ = ["../_base_/compare.py"]

model = dict(
    backbone=dict(
        type="CBT",
        arch=dict(embed_dim=116, depth=6, num_heads=4),
        compress=dict(type="CBSA", side=2, shifted=False),
    )
)
