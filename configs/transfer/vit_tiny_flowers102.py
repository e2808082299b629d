"""ViT-Tiny fine-tuned on Oxford Flowers-102, from a checkpoint of ImageNet-1K.

    python tools/train.py configs/transfer/vit_tiny_flowers102.py --load-from vit_tiny.pth

The paper reports 85.1 % top-1 (Table 1). Not reproduced here.
"""

_base_ = ["../_base_/models/vit.py", "../_base_/transfer/flowers102.py"]

model = dict(backbone=dict(arch="tiny"), head=dict(num_classes=102))
