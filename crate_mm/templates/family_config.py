"""A classifier with my own backbone, on the handwritten digits.

crate-mm train my_family_config.py
"""

_base_ = ["configs/debug.py"]
custom_imports = dict(imports=["my_family"])  # the file beside this one
model = dict(
    backbone=dict(_delete_=True, type="MyFamily", img_size=8, patch_size=2, in_channels=1),
    head=dict(pool="mean"),  # "cls" would take the first token; this backbone has no CLS token
)
