"""ViT-Small fine-tuned on Oxford-IIIT Pet, from a checkpoint of ImageNet-1K.

    tools/dist_train.sh configs/transfer/vit_small_pets.py 1 --load-from vit_small.pth --cfg-options data_root=data

The paper reports 88.6 % top-1 (Table 1). Not reproduced here.
"""

_base_ = ["../_base_/models/vit.py", "../_base_/transfer/pets.py"]

model = dict(backbone=dict(arch="small"), head=dict(num_classes=37))
