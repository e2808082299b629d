"""A small CRATE with a linear decoder that segments scenes of clothing: no download.

python tools/train.py configs/segmentation_mini_scenes.py --cfg-options data_root=data
"""

_base_ = ["_base_/segmentation.py"]

model = dict(
    backbone=dict(type="CRATE", arch=dict(embed_dim=96, depth=4, num_heads=4)),
    head=dict(type="LinearDecoder"),
)
