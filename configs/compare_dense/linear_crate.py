"""A small CRATE with a linear decoder on scenes of clothing.

python tools/train.py configs/compare_dense/linear_crate.py --cfg-options data_root=data
"""

_base_ = ["../_base_/compare_dense/crate.py"]

model = dict(head=dict(type="LinearDecoder"))
