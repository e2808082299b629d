"""The CRATE of crate.py pretrained on Fashion-MNIST as a masked autoencoder: 12 of 16 patches are masked.

    python tools/train.py configs/compare_simdino/crate_mae.py --cfg-options data_root=data

The encoder has a convolution and fixed positions, as in CRATE-MAE. Images are padded and shifted as in compare/.
"""

_base_ = ["../crate_mae_mini_fashion_mnist.py"]

arch = dict(embed_dim=96, depth=4, num_heads=4)
model = dict(
    backbone=dict(arch=arch, img_size=32, patch_size=8),
    decoder=dict(depth=4, num_heads=4),
)
train_dataloader = dict(
    dataset=dict(transforms=[dict(type="RandomCrop", size=32, padding=4), dict(type="RandomHorizontalFlip")])
)
val_dataloader = dict(dataset=dict(transforms=[dict(type="Pad", padding=2)]))
test_dataloader = val_dataloader
