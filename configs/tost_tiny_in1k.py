"""ToST-T (tiny_12, 5,769,328 parameters) on ImageNet-1K (Wu et al., ICLR 2025, arXiv 2412.17810).

    tools/dist_train.sh configs/tost_tiny_in1k.py 8 --amp --cfg-options data_root=/data/imagenet

The authors report 67.3 % top-1, and 72.2 % on ImageNet ReaL. Not reproduced here.

The recipe is from their code: see _base_/schedules/tost_adamw.py; random resized crop (bicubic), flip, RandAugment m9,
random erasing 0.25, mixup 0.8 and cutmix 1, label smoothing 0.1, repeated augmentation; tested on the whole shorter
side (crop ratio 1). Their BatchNorm is SyncBatchNorm, which is used here too on several GPUs.

Differences: torchvision's RandAugment has no noise on the magnitude (mstd0.5), slightly different strengths, and
bilinear rotation; its magnitudes go to 10 here, as in timm. Assumptions: 3 repeats of an image, as in DeiT, and equal
probabilities of mixup and cutmix.

Fine-tuning is that of configs/transfer/ with batch 256 and learning rate 1e-4:

    tools/dist_train.sh configs/transfer/pets.py 8 --load-from tost_tiny.pth \\
        --cfg-options global_batch_size=256 optim_wrapper.optimizer.lr=1e-4

The authors report 95.5 % on CIFAR-10, 78.3 % on CIFAR-100, 88.6 % on Flowers-102 and 85.6 % on Pets. Not reproduced
here.
"""

_base_ = [
    "_base_/models/tost.py",
    "_base_/datasets/in1k.py",
    "_base_/schedules/tost_adamw.py",
    "_base_/default_runtime.py",
]

model = dict(
    backbone=dict(arch="tiny_12"),
    batch_augments=[
        dict(type="BatchRandomErasing", p=0.25),
        dict(type="MixUp", alpha=0.8),
        dict(type="CutMix", alpha=1.0),
    ],
    label_smoothing=0.1,
)
train_dataloader = dict(
    sampler=dict(repeats=3),
    dataset=dict(
        transforms=[
            dict(type="DecodeRandomResizedCrop", size=224, interpolation="bicubic"),
            dict(type="RandomHorizontalFlip"),
            dict(type="RandAugment", num_ops=2, magnitude=9, num_magnitude_bins=11, interpolation="bilinear"),
        ]
    ),
)
whole_image = [dict(type="Resize", size=224, interpolation="bicubic"), dict(type="CenterCrop", size=224)]
val_dataloader = dict(dataset=dict(transforms=whole_image))
test_dataloader = dict(dataset=dict(transforms=whole_image))
