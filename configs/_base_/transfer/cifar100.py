# CIFAR-100: 50,000 training and 10,000 test images in data_root/cifar-100-python/.
_base_ = ["finetune.py"]

train_dataloader = dict(dataset=dict(source=dict(type="CIFAR100", train=True)))
val_dataloader = dict(dataset=dict(source=dict(type="CIFAR100", train=False)))
test_dataloader = val_dataloader
