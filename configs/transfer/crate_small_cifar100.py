"""CRATE-Small fine-tuned on CIFAR-100, from a checkpoint of ImageNet-1K.

    python tools/train.py configs/transfer/crate_small_cifar100.py --load-from crate_small.pth

The paper reports 81.0 % top-1 (Table 1). Not reproduced here.
"""

_base_ = ["../_base_/models/crate.py", "../_base_/transfer/cifar100.py"]

model = dict(backbone=dict(arch="small"), head=dict(num_classes=100))
