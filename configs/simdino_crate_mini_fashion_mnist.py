"""The CRATE of crate_mini_fashion_mnist.py, pretrained on Fashion-MNIST by SimDINO, for two CPU cores.

    python tools/train.py configs/simdino_crate_mini_fashion_mnist.py --cfg-options data_root=data
    python tools/train.py configs/transfer/fashion_mnist.py --linear-probe \
        --load-from work_dirs/simdino_crate_mini_fashion_mnist/epoch_12.pth

No results were measured. The schedule is that of the small models, with the weight decay and the clipping of SimDINO.
Two crops of 28 x 28 pixels and four of 14 x 14, which are 16 and 4 patches.
"""

_base_ = ["_base_/simdino_small.py"]

arch = dict(embed_dim=192, depth=6, num_heads=6)
model = dict(
    backbone=dict(type="CRATE", arch=arch, img_size=28, patch_size=7, in_channels=1),
    momentum=0.99,
    hidden_dim=512,
    out_dim=128,
)
flip = dict(type="RandomHorizontalFlip")
views = [
    dict(num=2, transforms=[dict(type="RandomResizedCrop", size=28, scale=(0.4, 1.0)), flip]),
    dict(num=4, transforms=[dict(type="RandomResizedCrop", size=14, scale=(0.1, 0.4)), flip]),
]
train_dataloader = dict(
    dataset=dict(_delete_=True, type="Views", source=dict(type="FashionMNIST", train=True), views=views)
)
