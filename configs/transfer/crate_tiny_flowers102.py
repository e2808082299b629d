"""CRATE-Tiny fine-tuned on Oxford Flowers-102, from a checkpoint of ImageNet-1K.

    python tools/train.py configs/transfer/crate_tiny_flowers102.py --load-from crate_tiny.pth

The paper reports 84.6 % top-1 (Table 1). Not reproduced here.
"""

_base_ = ["../_base_/models/crate.py", "../_base_/transfer/flowers102.py"]

model = dict(backbone=dict(arch="tiny"), head=dict(num_classes=102))
