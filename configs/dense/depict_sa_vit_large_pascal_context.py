"""ViT-L/16 with DEPICT-SA's decoder on Pascal Context with 60 classes, crops of 480 pixels: Segmenter's recipe.

    tools/dist_train.sh configs/dense/depict_sa_vit_large_pascal_context.py 8 --amp --load-from vit_large.pth \
        --cfg-options data_root=/data/pascal_context

Not reproduced: nothing was trained here. The starting weights are those of depict_sa_vit_large_ade20k.py. The published
annotations are MATLAB files: convert them to PNG masks in the layout of MaskFolders (images/ and masks/, with train/
and val/ in both, and classes.txt of 60 names).
"""

_base_ = ["depict_sa_vit_large_ade20k.py"]

model = dict(backbone=dict(img_size=480), head=dict(num_classes=60), window=480, stride=320)
train_dataloader = dict(
    dataset=dict(
        source=dict(type="MaskFolders"),
        transforms=[
            dict(type="ScaleJitter", target_size=(1920, 480), scale_range=(0.5, 2.0)),
            dict(type="RandomClassCrop", size=480, pad_if_needed=True, max_share=0.75),
            dict(type="RandomHorizontalFlip"),
            dict(type="RandomPhotometricDistort"),
        ],
    )
)
val_dataloader = dict(
    dataset=dict(source=dict(type="MaskFolders"), transforms=[dict(type="Resize", size=480, max_size=1920)])
)
global_batch_size = 16
train_cfg = dict(max_epochs=256, val_interval=8)
