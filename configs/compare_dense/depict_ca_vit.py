"""A small ViT with DEPICT-CA on scenes of clothing.

python tools/train.py configs/compare_dense/depict_ca_vit.py --cfg-options data_root=data
"""

_base_ = ["../_base_/compare_dense/vit.py"]

model = dict(head=dict(type="DEPICTCA"))
