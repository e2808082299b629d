"""ViT-L/16 with CBT's decoder on ADE20K: Segmenter's recipe.

    tools/dist_train.sh configs/dense/cbt_vit_large_ade20k.py 8 --amp --load-from vit_large.pth

Published (the authors' README): 53.3 mIoU, 22.3 G multiply-adds of the decoder. Not reproduced: nothing was trained
here. Recipe and starting weights are as in depict_sa_vit_large_ade20k.py. Images of 640 pixels are assumed, too.
"""

_base_ = ["depict_sa_vit_large_ade20k.py"]

model = dict(head=dict(type="CBTDecoder"))
