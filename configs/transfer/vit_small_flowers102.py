"""ViT-Small fine-tuned on Oxford Flowers-102, from a checkpoint of ImageNet-1K.

    python tools/train.py configs/transfer/vit_small_flowers102.py --load-from vit_small.pth

The paper reports 88.5 % top-1 (Table 1). Not reproduced here.
"""

_base_ = ["../_base_/models/vit.py", "../_base_/transfer/flowers102.py"]

model = dict(backbone=dict(arch="small"), head=dict(num_classes=102))
