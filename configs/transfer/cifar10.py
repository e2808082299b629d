"""CIFAR-10, by the paper's recipe: 50,000 training and 10,000 test images in data_root/cifar-10-batches-py/.

    python tools/train.py configs/transfer/cifar10.py --load-from crate_base.pth
    python tools/train.py configs/transfer/cifar10.py --load-from crate_base.pth --linear-probe

The model is the checkpoint's, or a config's with --model CONFIG. The paper reports 95.5, 96.0, 96.8 and 97.2 %
top-1 for CRATE-Tiny, Small, Base and Large, 96.6 and 97.2 % for ViT-Tiny and Small (Table 1). Not reproduced here.
"""

_base_ = ["../_base_/transfer/finetune.py"]

model = dict(head=dict(num_classes=10))
train_dataloader = dict(dataset=dict(source=dict(type="CIFAR10", train=True)))
val_dataloader = dict(dataset=dict(source=dict(type="CIFAR10", train=False)))
test_dataloader = val_dataloader
