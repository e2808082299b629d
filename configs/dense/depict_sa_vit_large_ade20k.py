"""ViT-L/16 with DEPICT-SA's decoder on ADE20K, images of 640 pixels: Segmenter's recipe.

    tools/dist_train.sh configs/dense/depict_sa_vit_large_ade20k.py 8 --amp --load-from vit_large.pth

Published (Wen and Li, NeurIPS 2024): 52.9 mIoU at one scale, 54.3 at several scales. Not reproduced: nothing was
trained here. The authors start from timm's vit_large_patch16_384 (ImageNet-21K, then 1K): backbone=dict(_delete_=True,
type="TimmBackbone", name="vit_large_patch16_384", pretrained=True, dynamic_img_size=True, drop_path_rate=0.1). A size
of 640 for resize, crops and window is an assumption.
"""

_base_ = [
    "../_base_/models/segmentation_vit.py",
    "../_base_/datasets/ade20k.py",
    "../_base_/schedules/segmenter_sgd.py",
    "../_base_/default_runtime.py",
]

model = dict(
    backbone=dict(arch=dict(embed_dim=1024, depth=24, num_heads=16), img_size=640),
    head=dict(type="DEPICTSA"),
    window=640,
    stride=640,
)
train_dataloader = dict(
    dataset=dict(
        transforms=[
            dict(type="ScaleJitter", target_size=(2560, 640), scale_range=(0.5, 2.0)),
            dict(type="RandomClassCrop", size=640, pad_if_needed=True, max_share=0.75),
            dict(type="RandomHorizontalFlip"),
            dict(type="RandomPhotometricDistort"),
        ]
    )
)
val_dataloader = dict(dataset=dict(transforms=[dict(type="Resize", size=640, max_size=2560)]))
