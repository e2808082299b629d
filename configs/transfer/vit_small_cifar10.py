"""ViT-Small fine-tuned on CIFAR-10, from a checkpoint of ImageNet-1K.

    python tools/train.py configs/transfer/vit_small_cifar10.py --load-from vit_small.pth

The paper reports 97.2 % top-1 (Table 1). Not reproduced here.
"""

_base_ = ["../_base_/models/vit.py", "../_base_/transfer/cifar10.py"]

model = dict(backbone=dict(arch="small"), head=dict(num_classes=10))
