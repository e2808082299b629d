"""ImageNet-1K, by CRATE-alpha's fine-tuning recipe (Yang et al., NeurIPS 2024), from a checkpoint of ImageNet-21K.

    tools/dist_train.sh configs/transfer/crate_alpha_in1k.py 16 --amp --load-from crate_alpha_base.pth \\
        --cfg-options data_root=/data/imagenet

The model is the checkpoint's, a CRATE-alpha. The authors report 76.5, 81.2, 83.2, 80.2, 83.9 and 85.1 % top-1
for B/32, B/16, B/8, L/32, L/14 and L/8. Not reproduced here.

The recipe is that of the pretraining, with a fifth of its learning rate (1e-5 x batch / 256), RandAugment(2, 9) and
label smoothing 0.1. The head is new. With --cfg-options model.backbone.patch_size=14, a model with patches of 32 is
fine-tuned with patches of 14: kernel and positions are resized bilinearly. (The authors' configuration lists the
kernels of patch embedding and head as not loaded.)

Magnitudes of their RandAugment go to 10, so torchvision's has 11 bins here. torchvision's operations differ slightly in
strength; brightness, contrast and similar operations act in both directions, as in 'increasing'.
"""

_base_ = [
    "../_base_/datasets/in1k.py",
    "../_base_/schedules/alpha_adamw.py",
    "../_base_/default_runtime.py",
]

model = dict(
    head=dict(num_classes=1000),
    batch_augments=[dict(type="MixUp", alpha=0.8, prob=0.5), dict(type="CutMix", alpha=1.0, prob=0.5)],
    label_smoothing=0.1,
)
train_dataloader = dict(
    dataset=dict(
        transforms=[
            dict(type="DecodeRandomResizedCrop", size=224),
            dict(type="RandomHorizontalFlip"),
            dict(type="RandAugment", num_ops=2, magnitude=9, num_magnitude_bins=11),
        ]
    )
)
optim_wrapper = dict(optimizer=dict(lr=1e-5))  # per 256 images
param_scheduler = dict(end_factor=1e-6 / 1.6e-4)
resize_positions = "bilinear"
resize_patches = "bilinear"
