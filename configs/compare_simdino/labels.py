"""The CRATE of crate.py trained on Fashion-MNIST with labels, by the recipe of compare/.

python tools/train.py configs/compare_simdino/labels.py --cfg-options data_root=data
"""

_base_ = ["../_base_/compare.py"]

model = dict(backbone=dict(type="CRATE", arch=dict(embed_dim=96, depth=4, num_heads=4)))
