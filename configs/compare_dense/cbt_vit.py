"""A small ViT with CBT's decoder on scenes of clothing.

python tools/train.py configs/compare_dense/cbt_vit.py --cfg-options data_root=data
"""

_base_ = ["../_base_/compare_dense/vit.py"]

model = dict(head=dict(type="CBTDecoder"))
