# Oxford-IIIT Pet: trained on the 3,680 images of 'trainval', tested on the 3,669 of 'test'; data_root/oxford-iiit-pet/.
_base_ = ["finetune.py"]

train_dataloader = dict(dataset=dict(source=dict(type="OxfordIIITPet", split="trainval")))
val_dataloader = dict(dataset=dict(source=dict(type="OxfordIIITPet", split="test")))
test_dataloader = val_dataloader
