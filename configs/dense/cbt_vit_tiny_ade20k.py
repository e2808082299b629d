"""ViT-T/16 with CBT's decoder on ADE20K: Segmenter's recipe.

    tools/dist_train.sh configs/dense/cbt_vit_tiny_ade20k.py 8 --amp --load-from vit_tiny.pth

Published (the authors' README): 39.1 mIoU, 1.5 G multiply-adds of the decoder. Not reproduced: nothing was trained
here. Recipe and starting weights are as in depict_sa_vit_large_ade20k.py, with images of 512 pixels.
"""

_base_ = ["cbt_vit_base_ade20k.py"]

model = dict(backbone=dict(arch="tiny"))
