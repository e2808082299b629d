"""CRATE-MAE-Small, pretrained on ImageNet-1K by the recipe of crate_mae_base_in1k.py (Pai et al., ICLR 2024).

    tools/dist_train.sh configs/crate_mae_small_in1k.py 16 --amp --cfg-options data_root=/data/imagenet

The authors report a linear probe of 79.4 % on CIFAR-10, 56.6 % on CIFAR-100, 57.7 % on Flowers-102 and 40.6 % on Pets.
Not reproduced here. They count 25.4 M parameters: 24,846,528 (this model), two position tables and an unused layer.
"""

_base_ = ["crate_mae_base_in1k.py"]

model = dict(backbone=dict(arch="small"))
