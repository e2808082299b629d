"""A small CRATE with my own operator, on the handwritten digits.

crate-mm train my_layer_config.py
"""

_base_ = ["configs/debug.py"]
custom_imports = dict(imports=["my_layer"])  # the file beside this one
model = dict(backbone=dict(sparsify=dict(type="MyLayer", lambd=0.2)))  # compress=dict(type=...) for a compression
