"""CRATE-Large fine-tuned on CIFAR-100, from a checkpoint of ImageNet-1K.

    python tools/train.py configs/transfer/crate_large_cifar100.py --load-from crate_large.pth

The paper reports 83.6 % top-1 (Table 1). Not reproduced here.
"""

_base_ = ["../_base_/models/crate.py", "../_base_/transfer/cifar100.py"]

model = dict(backbone=dict(arch="large"), head=dict(num_classes=100))
