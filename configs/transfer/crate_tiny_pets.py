"""CRATE-Tiny fine-tuned on Oxford-IIIT Pet, from a checkpoint of ImageNet-1K.

    python tools/train.py configs/transfer/crate_tiny_pets.py --load-from crate_tiny.pth

The paper reports 81.4 % top-1 (Table 1). Not reproduced here.
"""

_base_ = ["../_base_/models/crate.py", "../_base_/transfer/pets.py"]

model = dict(backbone=dict(arch="tiny"), head=dict(num_classes=37))
