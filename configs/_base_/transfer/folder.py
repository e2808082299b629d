# Images of your own, a folder a class: data_root/{train,val}/<class>/, or data_root/<class>/ and a fifth is set aside.
_base_ = ["finetune.py"]

train_dataloader = dict(dataset=dict(source=dict(type="ClassFolders", split="train")))
val_dataloader = dict(dataset=dict(source=dict(type="ClassFolders", split="val")))
test_dataloader = val_dataloader
