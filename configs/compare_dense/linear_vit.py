"""A small ViT with a linear decoder on scenes of clothing.

python tools/train.py configs/compare_dense/linear_vit.py --cfg-options data_root=data
"""

_base_ = ["../_base_/compare_dense/vit.py"]

model = dict(head=dict(type="LinearDecoder"))
