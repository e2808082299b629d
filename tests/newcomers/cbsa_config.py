_base_ = ["../../configs/debug.py"]
custom_imports = dict(imports=["cbsa"])
model = dict(backbone=dict(compress=dict(type="CBSA", pool=2)))
