"""CRATE-MAE-Base, pretrained on ImageNet-1K by masked autoencoding (Pai et al., ICLR 2024).

    tools/dist_train.sh configs/crate_mae_base_in1k.py 16 --amp --cfg-options data_root=/data/imagenet

The authors report a linear probe of 80.9 % on CIFAR-10, 60.1 % on CIFAR-100, 61.8 % on Flowers-102 and 46.2 % on Pets.
Not reproduced here.

They used the MAE code base. This recipe follows that code: learning rate 2.4e-3 at batch 4096, weight decay 0.05,
normalized pixels, random resized crop of 20 to 100 % of the image, flip. The authors' book gives a base learning rate
of 3e-5, without saying whether it is scaled by the batch, and weight decay 0.1. The authors count 44.6 M parameters:
43,745,280 (this model), two position tables and an unused layer.
"""

_base_ = [
    "_base_/models/crate_mae.py",
    "_base_/datasets/in1k.py",
    "_base_/schedules/mae_adamw.py",
    "_base_/default_runtime.py",
]

model = dict(backbone=dict(arch="base"))
crop = dict(type="DecodeRandomResizedCrop", size=224, scale=(0.2, 1.0), interpolation="bicubic")
train_dataloader = dict(dataset=dict(transforms=[crop, dict(type="RandomHorizontalFlip")]))
val_evaluator = dict(_delete_=True, type="ReconstructionLoss")
test_evaluator = dict(_delete_=True, type="ReconstructionLoss")
