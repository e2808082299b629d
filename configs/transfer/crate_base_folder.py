"""CRATE-Base fine-tuned on images of your own, a folder a class, from a checkpoint of ImageNet-1K.

    python tools/train.py configs/transfer/crate_base_folder.py --load-from crate_base.pth --cfg-options \\
      data_root=/my/images model.head.num_classes=5

For another model change two words: the file of _base_/models and arch.
"""

_base_ = ["../_base_/models/crate.py", "../_base_/transfer/folder.py"]

model = dict(backbone=dict(arch="base"), head=dict(num_classes=2))
