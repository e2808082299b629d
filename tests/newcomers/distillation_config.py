"""Two-crop self-distillation on the digits: tiny, for tests.

python tools/train.py tests/newcomers/distillation_config.py
"""

_base_ = ["../../configs/debug.py"]
custom_imports = dict(imports=["distillation"])
model = dict(
    _delete_=True,
    type="Distillation",
    backbone=dict(type="CRATE", arch=dict(embed_dim=48, depth=2, num_heads=3), img_size=8, patch_size=2, in_channels=1),
    preprocessor=dict(type="ImagePreprocessor", mean=(0.5,), std=(0.5,)),
)
train_dataloader = dict(dataset=dict(_delete_=True, type="TwoCrops", source=dict(type="Digits", split="train")))
val_dataloader = dict(dataset=dict(_delete_=True, type="TwoCrops", source=dict(type="Digits", split="test")))
test_dataloader = val_dataloader
val_evaluator = dict(_delete_=True, type="NeighborAccuracy")
test_evaluator = val_evaluator
