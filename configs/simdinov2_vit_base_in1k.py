"""ViT-B/16 pretrained on ImageNet-1K by SimDINOv2 (Wu et al., ICML 2025): SimDINO with masked patches.

    tools/dist_train.sh configs/simdinov2_vit_base_in1k.py 8 --amp --cfg-options data_root=/data/imagenet

The authors report 78.1 % top-1 by k-NN and 79.7 % by a linear probe after 100 epochs; DINOv2 reaches 76.0 % and 77.2 %.
Not reproduced here.

The batch is 1024: 8 GPUs with 128 images each, and covariance groups of 128. For another batch, the learning rate is
4e-3 sqrt(batch / 1024).

Different from the official code: GaussianBlur is torchvision's; patches are masked at random, not in rectangles, and
each crop is masked with probability 0.5, where the official code masks exactly half; the warm-up is that of SimDINO.
"""

_base_ = ["simdino_vit_base_in1k.py"]

global_batch_size = 1024
model = dict(
    backbone=dict(drop_path=0.2, registers=4, layer_scale=0.1),
    group_size=128,
    momentum=0.9,
    patch_weight=1.0,
    mask_probability=0.5,
    mask_ratio=(0.1, 0.5),
)
optim_wrapper = dict(
    optimizer=dict(lr=4e-3),
    paramwise_cfg=dict(
        layer_decay=0.9,
        custom_keys={
            "backbone.conv_proj.weight": dict(lr_mult=0.2),
            "backbone.conv_proj.bias": dict(lr_mult=0.2, decay_mult=0.0),
        },
    ),
)
param_scheduler = [
    dict(type="WarmupCosineLR", warmup=10, start_factor=0.0, end_factor=2.5e-4),  # in epochs
    dict(type="CosineWeightDecay", end_factor=10),
]
