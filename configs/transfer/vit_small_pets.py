"""ViT-Small fine-tuned on Oxford-IIIT Pet, from a checkpoint of ImageNet-1K.

    python tools/train.py configs/transfer/vit_small_pets.py --load-from vit_small.pth

The paper reports 88.6 % top-1 (Table 1). Not reproduced here.
"""

_base_ = ["../_base_/models/vit.py", "../_base_/transfer/pets.py"]

model = dict(backbone=dict(arch="small"), head=dict(num_classes=37))
