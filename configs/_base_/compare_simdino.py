# SimDINO in a common recipe for small models of several families: Fashion-MNIST, with crops of 32 x 32 and 16 x 16
# pixels: 16 and 4 patches of 8 x 8, as the stems of ToST and CBT need patches of 8. A leaf config sets the backbone.
# All backbones have equal multiply-adds, within 5 %.
_base_ = ["simdino_small.py"]

global_batch_size = 512  # 8 covariance groups of 64 images
model = dict(
    backbone=dict(img_size=32, patch_size=8, in_channels=1),
    momentum=0.98,
    hidden_dim=256,
    out_dim=64,
)
flip = dict(type="RandomHorizontalFlip")
views = [
    dict(num=2, transforms=[dict(type="RandomResizedCrop", size=32, scale=(0.4, 1.0)), flip]),
    dict(num=2, transforms=[dict(type="RandomResizedCrop", size=16, scale=(0.1, 0.4)), flip]),
]
train_dataloader = dict(
    dataset=dict(_delete_=True, type="Views", source=dict(type="FashionMNIST", train=True), views=views)
)
val_dataloader = dict(dataset=dict(transforms=[dict(type="Pad", padding=2)]))
test_dataloader = val_dataloader
param_scheduler = [
    dict(type="WarmupCosineLR", warmup=0.25),  # in epochs
    dict(type="CosineWeightDecay", end_factor=10),
]
train_cfg = dict(max_epochs=2, val_interval=2)
