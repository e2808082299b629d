"""A classifier with AoT: tiny, for tests.

python tools/train.py tests/newcomers/attention_only_config.py
"""

_base_ = ["../../configs/debug.py"]
custom_imports = dict(imports=["attention_only"])
model = dict(
    backbone=dict(
        _delete_=True, type="NewcomerAoT", embed_dim=48, depth=2, num_heads=3, img_size=8, patch_size=2, in_channels=1
    ),
)
