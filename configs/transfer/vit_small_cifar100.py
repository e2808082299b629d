"""ViT-Small fine-tuned on CIFAR-100, from a checkpoint of ImageNet-1K.

    python tools/train.py configs/transfer/vit_small_cifar100.py --load-from vit_small.pth

The paper reports 83.2 % top-1 (Table 1). Not reproduced here.
"""

_base_ = ["../_base_/models/vit.py", "../_base_/transfer/cifar100.py"]

model = dict(backbone=dict(arch="small"), head=dict(num_classes=100))
