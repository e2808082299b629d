"""ViT-L/16 with DEPICT-SA's decoder on Cityscapes, crops of 768 pixels: Segmenter's recipe.

    tools/dist_train.sh configs/dense/depict_sa_vit_large_cityscapes.py 8 --amp --load-from vit_large.pth

Not reproduced: nothing was trained here. The starting weights are those of depict_sa_vit_large_ade20k.py.
"""

_base_ = ["depict_sa_vit_large_ade20k.py"]

model = dict(backbone=dict(img_size=768), head=dict(num_classes=19), window=768, stride=512)
train_dataloader = dict(
    dataset=dict(
        source=dict(type="Cityscapes"),
        transforms=[
            dict(type="ScaleJitter", target_size=(2048, 1024), scale_range=(0.5, 2.0)),
            dict(type="RandomClassCrop", size=768, pad_if_needed=True, max_share=0.75),
            dict(type="RandomHorizontalFlip"),
            dict(type="RandomPhotometricDistort"),
        ],
    )
)
val_dataloader = dict(dataset=dict(source=dict(type="Cityscapes"), transforms=[]))
optim_wrapper = dict(optimizer=dict(lr=1e-2))
train_cfg = dict(max_epochs=216, val_interval=8)
