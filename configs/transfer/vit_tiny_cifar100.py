"""ViT-Tiny fine-tuned on CIFAR-100, from a checkpoint of ImageNet-1K.

    python tools/train.py configs/transfer/vit_tiny_cifar100.py --load-from vit_tiny.pth

The paper reports 81.8 % top-1 (Table 1). Not reproduced here.
"""

_base_ = ["../_base_/models/vit.py", "../_base_/transfer/cifar100.py"]

model = dict(backbone=dict(arch="tiny"), head=dict(num_classes=100))
