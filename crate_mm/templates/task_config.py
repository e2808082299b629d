"""My own task, on the handwritten digits.

crate-mm train my_task_config.py
"""

_base_ = ["configs/debug.py"]
custom_imports = dict(imports=["my_task"])  # the file beside this one
model = dict(
    _delete_=True,
    type="MyTask",
    backbone=dict(type="CRATE", arch=dict(embed_dim=48, depth=2, num_heads=3), img_size=8, patch_size=2, in_channels=1),
    preprocessor=dict(type="ImagePreprocessor", mean=(0.5,), std=(0.5,)),
)
val_evaluator = dict(_delete_=True, type="MyTaskError")  # the test uses it too
