"""A small CRATE with DEPICT-CA on scenes of clothing.

python tools/train.py configs/compare_dense/depict_ca_crate.py --cfg-options data_root=data
"""

_base_ = ["../_base_/compare_dense/crate.py"]

model = dict(head=dict(type="DEPICTCA"))
