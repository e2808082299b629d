"""CRATE-Tiny fine-tuned on CIFAR-10, from a checkpoint of ImageNet-1K.

    python tools/train.py configs/transfer/crate_tiny_cifar10.py --load-from crate_tiny.pth

The paper reports 95.5 % top-1 (Table 1). Not reproduced here.
"""

_base_ = ["../_base_/models/crate.py", "../_base_/transfer/cifar10.py"]

model = dict(backbone=dict(arch="tiny"), head=dict(num_classes=10))
