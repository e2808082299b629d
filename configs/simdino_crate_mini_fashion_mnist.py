"""The CRATE of crate_mini_fashion_mnist.py, pretrained on Fashion-MNIST by SimDINO, for two CPU cores.

    python tools/train.py configs/simdino_crate_mini_fashion_mnist.py --cfg-options data_root=data
    python tools/train.py configs/transfer/fashion_mnist.py --linear-probe \
        --load-from work_dirs/simdino_crate_mini_fashion_mnist/epoch_12.pth

No results were measured. The schedule is that of the small models, with the weight decay and the clipping of SimDINO.
Two crops of 28 x 28 pixels and four of 14 x 14, which are 16 and 4 patches.
"""

_base_ = [
    "_base_/datasets/fashion_mnist.py",
    "_base_/schedules/small_adamw.py",
    "_base_/default_runtime.py",
]

arch = dict(embed_dim=192, depth=6, num_heads=6)
model = dict(
    type="SelfDistillation",
    backbone=dict(type="CRATE", arch=arch, img_size=28, patch_size=7, in_channels=1),
    group_size=64,
    momentum=0.99,
    hidden_dim=512,
    out_dim=128,
    preprocessor=dict(type="ImagePreprocessor", mean=(0.2860,), std=(0.3530,)),
)
flip = dict(type="RandomHorizontalFlip")
views = [
    dict(num=2, transforms=[dict(type="RandomResizedCrop", size=28, scale=(0.4, 1.0)), flip]),
    dict(num=4, transforms=[dict(type="RandomResizedCrop", size=14, scale=(0.1, 0.4)), flip]),
]
train_dataloader = dict(
    dataset=dict(_delete_=True, type="Views", source=dict(type="FashionMNIST", train=True), views=views)
)
val_evaluator = dict(_delete_=True, type="KNNMetric", k=20, temperature=0.07)
optim_wrapper = dict(
    optimizer=dict(weight_decay=0.04),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0),
    clip_grad=dict(max_norm=3.0, per_parameter=True),
)
param_scheduler = [
    dict(type="WarmupCosineLR", warmup=1),  # in epochs
    dict(type="CosineWeightDecay", end_factor=10),
]
