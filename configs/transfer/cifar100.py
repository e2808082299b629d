"""CIFAR-100, by the paper's recipe: 50,000 training and 10,000 test images in data_root/cifar-100-python/.

    python tools/train.py configs/transfer/cifar100.py --load-from crate_base.pth
    python tools/train.py configs/transfer/cifar100.py --load-from crate_base.pth --linear-probe

The model is the checkpoint's, or a config's with --model CONFIG. The paper reports 78.9, 81.0, 82.7 and 83.6 %
top-1 for CRATE-Tiny, Small, Base and Large, 81.8 and 83.2 % for ViT-Tiny and Small (Table 1). Not reproduced here.
"""

_base_ = ["../_base_/transfer/finetune.py"]

model = dict(head=dict(num_classes=100))
train_dataloader = dict(dataset=dict(source=dict(type="CIFAR100", train=True)))
val_dataloader = dict(dataset=dict(source=dict(type="CIFAR100", train=False)))
test_dataloader = val_dataloader
