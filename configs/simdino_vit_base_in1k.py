"""ViT-B/16 pretrained on ImageNet-1K by SimDINO (Wu et al., ICML 2025): self-distillation without labels.

    tools/dist_train.sh configs/simdino_vit_base_in1k.py 8 --amp --cfg-options data_root=/data/imagenet

The authors report 74.9 % top-1 by k-NN and 77.3 % by a linear probe after 100 epochs; DINO reaches 72.9 % and 76.3 %.
Not reproduced here.

On any number of GPUs, the expansion's covariance is that of 64 images, as on the authors' 8 GPUs with 64 images each.
The official option reduce_cov is model.group_size=batch: the largest expansion is then 2.28 instead of 0.45.
model.objective=dino trains DINO with the same settings; its prototypes are trained from the first step. DINO's ViT-B
warms up the teacher's temperature over 30 epochs: model.teacher_temp_start=0.04, model.teacher_temp=0.07.

Different from the official code: GaussianBlur is torchvision's. The linear probe starts from the teacher:

    python tools/train.py CONFIG --load-from work_dirs/simdino_vit_base_in1k/epoch_100.pth --linear-probe
"""

_base_ = ["_base_/datasets/in1k.py", "_base_/schedules/simdino_adamw.py", "_base_/default_runtime.py"]

arch = dict(embed_dim=768, depth=12, num_heads=12)
model = dict(
    type="SelfDistillation",
    backbone=dict(type="ViT", arch=arch, img_size=224, patch_size=16, drop_path=0.1),
    objective="rate",
    eps=0.05,
    expansion_of="mean",
    group_size=64,
    momentum=0.996,
    hidden_dim=2048,
    out_dim=256,
    preprocessor=dict(type="ImagePreprocessor", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
)
jitter = dict(type="ColorJitter", brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)
color = [
    dict(type="RandomHorizontalFlip"),
    dict(type="RandomApply", transforms=[jitter], p=0.8),
    dict(type="RandomGrayscale", p=0.2),
]
blur = dict(type="GaussianBlur", kernel_size=13, sigma=(0.1, 2.0))
crop = dict(type="DecodeRandomResizedCrop", interpolation="bicubic")
large, small = dict(crop, size=224, scale=(0.4, 1.0)), dict(crop, size=96, scale=(0.05, 0.4))
sometimes = dict(type="RandomApply", transforms=[blur])
solarize = dict(type="RandomSolarize", threshold=128, p=0.2)
views = [
    dict(num=1, transforms=[large, *color, blur]),
    dict(num=1, transforms=[large, *color, dict(sometimes, p=0.1), solarize]),
    dict(num=10, transforms=[small, *color, dict(sometimes, p=0.5)]),
]
train_dataloader = dict(
    dataset=dict(_delete_=True, type="Views", source=dict(type="ImageNet", split="train"), views=views)
)
val_dataloader = dict(
    dataset=dict(
        transforms=[
            dict(type="Resize", size=256, interpolation="bicubic"),
            dict(type="CenterCrop", size=224),
        ]
    )
)
val_evaluator = dict(_delete_=True, type="KNNMetric", k=20, temperature=0.07)
