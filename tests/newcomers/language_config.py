"""A causal language model on the bytes of Python's help texts: tiny, for tests.

python tools/train.py tests/newcomers/language_config.py
"""

_base_ = ["../../configs/debug.py"]
custom_imports = dict(imports=["language"])
model = dict(
    _delete_=True,
    type="ByteModel",
    backbone=dict(type="ByteCRATE", embed_dim=48, depth=2, num_heads=3, length=64),
)
train_dataloader = dict(dataset=dict(_delete_=True, type="PythonTopics", split="train"))
val_dataloader = dict(dataset=dict(_delete_=True, type="PythonTopics", split="test"))
test_dataloader = val_dataloader
val_evaluator = dict(_delete_=True, type="BitsPerByte")
test_evaluator = val_evaluator
