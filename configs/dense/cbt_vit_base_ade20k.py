"""ViT-B/16 with CBT's decoder on ADE20K: Segmenter's recipe.

    tools/dist_train.sh configs/dense/cbt_vit_base_ade20k.py 8 --amp --load-from vit_base.pth

Published (the authors' README): 49.3 mIoU, 7.8 G multiply-adds of the decoder. Not reproduced: nothing was trained
here. Recipe and starting weights are as in depict_sa_vit_large_ade20k.py, with images of 512 pixels.
"""

_base_ = [
    "../_base_/models/segmentation_vit.py",
    "../_base_/datasets/ade20k.py",
    "../_base_/schedules/segmenter_sgd.py",
    "../_base_/default_runtime.py",
]

model = dict(backbone=dict(arch=dict(embed_dim=768, depth=12, num_heads=12)), head=dict(type="CBTDecoder"))
