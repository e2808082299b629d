# CIFAR-10: 50,000 training and 10,000 test images in data_root/cifar-10-batches-py/.
_base_ = ["finetune.py"]

train_dataloader = dict(dataset=dict(source=dict(type="CIFAR10", train=True)))
val_dataloader = dict(dataset=dict(source=dict(type="CIFAR10", train=False)))
test_dataloader = val_dataloader
