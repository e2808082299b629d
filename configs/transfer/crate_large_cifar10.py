"""CRATE-Large fine-tuned on CIFAR-10, from a checkpoint of ImageNet-1K.

    python tools/train.py configs/transfer/crate_large_cifar10.py --load-from crate_large.pth

The paper reports 97.2 % top-1 (Table 1). Not reproduced here.
"""

_base_ = ["../_base_/models/crate.py", "../_base_/transfer/cifar10.py"]

model = dict(backbone=dict(arch="large"), head=dict(num_classes=10))
