"""A small CRATE with DEPICT-SA on scenes of clothing.

python tools/train.py configs/compare_dense/depict_sa_crate.py --cfg-options data_root=data
"""

_base_ = ["../_base_/compare_dense/crate.py"]

model = dict(head=dict(type="DEPICTSA"))
