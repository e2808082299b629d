"""The segmentation paper's CRATE-B/8 (38,830,801 parameters) on ImageNet-21K, by the recipe of crate_small8_in21k.py.

    tools/dist_train.sh configs/crate_base8_in21k.py 16 --amp --cfg-options data_root=/data/imagenet21k

The paper reports 23.6 mIoU for its coarse masks on PASCAL VOC12, and fine-tuned (batch 128) 79.5 % on ImageNet-1K,
98.1 % on CIFAR-10, 87.9 % on CIFAR-100, 96.7 % on Flowers-102 and 86.4 % on Pets. Not reproduced here.
"""

_base_ = ["crate_small8_in21k.py"]

model = dict(backbone=dict(arch="base"))
