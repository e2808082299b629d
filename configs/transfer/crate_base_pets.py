"""CRATE-Base fine-tuned on Oxford-IIIT Pet, from a checkpoint of ImageNet-1K.

    python tools/train.py configs/transfer/crate_base_pets.py --load-from crate_base.pth

The paper reports 85.3 % top-1 (Table 1). Not reproduced here.
"""

_base_ = ["../_base_/models/crate.py", "../_base_/transfer/pets.py"]

model = dict(backbone=dict(arch="base"), head=dict(num_classes=37))
