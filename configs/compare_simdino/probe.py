"""k-NN and linear probe of the backbones of this folder, on Fashion-MNIST padded to 32 x 32 pixels.

    python tools/knn.py configs/compare_simdino/probe.py work_dirs/crate/epoch_2.pth --cfg-options data_root=data
    python tools/train.py configs/compare_simdino/probe.py --load-from work_dirs/crate/epoch_2.pth

work_dirs/crate/epoch_2.pth stands for a checkpoint of crate.py. If there is a teacher, it computes the features. The
probe trains only the head, for three epochs.
"""

_base_ = ["../transfer/fashion_mnist.py"]

pad = dict(type="Pad", padding=2)
# No random crops: CLS features of patches of 8 x 8 pixels move with the image, and the head then learns less.
train_dataloader = dict(dataset=dict(transforms=[pad, dict(type="RandomHorizontalFlip")]))
val_dataloader = dict(dataset=dict(transforms=[pad]))
test_dataloader = val_dataloader

# The learning rate of --linear-probe, 1e-3, is too low for three epochs.
model = dict(freeze_backbone=True)
optim_wrapper = dict(optimizer=dict(lr=0.03, weight_decay=0.0))
param_scheduler = dict(warmup=0)
train_cfg = dict(max_epochs=3)
