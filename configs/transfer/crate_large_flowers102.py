"""CRATE-Large fine-tuned on Oxford Flowers-102, from a checkpoint of ImageNet-1K.

    python tools/train.py configs/transfer/crate_large_flowers102.py --load-from crate_large.pth

The paper reports 88.3 % top-1 (Table 1). Not reproduced here.
"""

_base_ = ["../_base_/models/crate.py", "../_base_/transfer/flowers102.py"]

model = dict(backbone=dict(arch="large"), head=dict(num_classes=102))
