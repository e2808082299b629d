"""CRATE-Base fine-tuned on Oxford Flowers-102, from a checkpoint of ImageNet-1K.

    python tools/train.py configs/transfer/crate_base_flowers102.py --load-from crate_base.pth

The paper reports 88.7 % top-1 (Table 1). Not reproduced here.
"""

_base_ = ["../_base_/models/crate.py", "../_base_/transfer/flowers102.py"]

model = dict(backbone=dict(arch="base"), head=dict(num_classes=102))
