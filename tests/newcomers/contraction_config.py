"""CRATE with CBSA instead of MSSA: tiny, for tests.

python tools/train.py tests/newcomers/contraction_config.py
"""

_base_ = ["../../configs/debug.py"]
custom_imports = dict(imports=["contraction"])
model = dict(backbone=dict(compress=dict(type="NewcomerCBSA", side=2)))  # of 4 x 4 patches
