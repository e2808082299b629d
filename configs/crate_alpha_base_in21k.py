"""CRATE-alpha-B/16 (86,299,359 parameters), pretrained on ImageNet-21K (Yang et al., NeurIPS 2024, arXiv 2405.20299).

    tools/dist_train.sh configs/crate_alpha_base_in21k.py 16 --amp --cfg-options data_root=/data/imagenet21k
    tools/dist_train.sh configs/transfer/crate_alpha_in1k.py 16 --amp --load-from crate_alpha_base.pth \\
        --cfg-options data_root=/data/imagenet

The authors report 81.2 % top-1 on ImageNet-1K after the second command; 76.5 % for B/32 and 83.2 % for B/8
(model.backbone.patch_size=32 and 8). Not reproduced here.

The data are folders in ImageNet's layout, with 19,167 classes: data_root/train/<wnid>/ and data_root/val/<wnid>/. The
authors' validation images are unknown. Without val/: --cfg-options val_dataloader=None val_cfg=None
val_evaluator=None.

The recipe is the authors' configuration: see _base_/schedules/alpha_adamw.py; random resized crop of at least 8 % of
the image, flip, mixup 0.8 or cutmix 1, no label smoothing, no stochastic depth. The two dictionaries of a
layer, two thirds of the parameters, have no weight decay.

The paper's ablation, by --cfg-options: model.backbone.residual=False; model.backbone.decoupled=False; both and
model.backbone.overcomplete=False (CRATE's layer). The ablation's published results are not known here.
"""

_base_ = [
    "_base_/models/crate_alpha.py",
    "_base_/datasets/in1k.py",
    "_base_/schedules/alpha_adamw.py",
    "_base_/default_runtime.py",
]

data_root = "data/imagenet21k"
model = dict(
    backbone=dict(arch="base"),
    head=dict(num_classes=19167),
    batch_augments=[dict(type="MixUp", alpha=0.8, prob=0.5), dict(type="CutMix", alpha=1.0, prob=0.5)],
)
