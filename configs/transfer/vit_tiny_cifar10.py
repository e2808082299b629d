"""ViT-Tiny fine-tuned on CIFAR-10, from a checkpoint of ImageNet-1K.

    python tools/train.py configs/transfer/vit_tiny_cifar10.py --load-from vit_tiny.pth

The paper reports 96.6 % top-1 (Table 1). Not reproduced here.
"""

_base_ = ["../_base_/models/vit.py", "../_base_/transfer/cifar10.py"]

model = dict(backbone=dict(arch="tiny"), head=dict(num_classes=10))
