"""CRATE-Small fine-tuned on Oxford-IIIT Pet, from a checkpoint of ImageNet-1K.

    python tools/train.py configs/transfer/crate_small_pets.py --load-from crate_small.pth

The paper reports 84.9 % top-1 (Table 1). Not reproduced here.
"""

_base_ = ["../_base_/models/crate.py", "../_base_/transfer/pets.py"]

model = dict(backbone=dict(arch="small"), head=dict(num_classes=37))
