"""Images of your own, a folder a class: data_root/{train,val}/<class>/, or data_root/<class>/ and a fifth is set aside.

    python tools/train.py configs/transfer/folder.py --load-from crate_base.pth \\
        --cfg-options data_root=/my/images model.head.num_classes=5

The model is the checkpoint's, or with --model CONFIG that of a config. A recipe of one's own: crate_base_folder.py.
"""

_base_ = ["../_base_/transfer/finetune.py"]

model = dict(head=dict(num_classes=2))  # as many as there are class folders
train_dataloader = dict(dataset=dict(source=dict(type="ClassFolders", split="train")))
val_dataloader = dict(dataset=dict(source=dict(type="ClassFolders", split="val")))
test_dataloader = val_dataloader
