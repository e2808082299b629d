"""Oxford-IIIT Pet, by the paper's fine-tuning recipe: trained on the 3,680 images of 'trainval', tested on the 3,669 of
'test', in data_root/oxford-iiit-pet/.

    python tools/train.py configs/transfer/pets.py --load-from crate_base.pth
    python tools/train.py configs/transfer/pets.py --load-from crate_base.pth --linear-probe

The model is the checkpoint's, or a config's with --model CONFIG. The paper reports 81.4, 84.9, 85.3 and 87.4 %
top-1 for CRATE-Tiny, Small, Base and Large, 88.5 and 88.6 % for ViT-Tiny and Small (Table 1). Not reproduced here.
"""

_base_ = ["../_base_/transfer/finetune.py"]

model = dict(head=dict(num_classes=37))
train_dataloader = dict(dataset=dict(source=dict(type="OxfordIIITPet", split="trainval")))
val_dataloader = dict(dataset=dict(source=dict(type="OxfordIIITPet", split="test")))
test_dataloader = val_dataloader
