"""The CRATE of this folder pretrained by SimDINO on 5,000 scenes, without their masks. Scenes have no label to classify
by, so k-NN is not defined and nothing is validated.

    python tools/train.py configs/compare_dense/simdino_crate.py --cfg-options data_root=data
    python tools/analyze.py segments configs/compare_dense/linear_crate.py work_dirs/simdino_crate/epoch_24.pth \
        --scenes data
    python tools/train.py configs/compare_dense/linear_crate.py --load-from work_dirs/simdino_crate/epoch_24.pth \
        --cfg-options data_root=data model.freeze_backbone=True
"""

_base_ = ["../simdino_crate_mini_fashion_mnist.py"]

model = dict(
    backbone=dict(arch=dict(embed_dim=96, depth=4, num_heads=4), img_size=64, patch_size=8),
    momentum=0.98,
    hidden_dim=256,
    out_dim=64,
)
flip = dict(type="RandomHorizontalFlip")
views = [
    dict(num=2, transforms=[dict(type="RandomResizedCrop", size=64, scale=(0.4, 1.0)), flip]),
    dict(num=2, transforms=[dict(type="RandomResizedCrop", size=32, scale=(0.1, 0.4)), flip]),
]
train_dataloader = dict(
    dataset=dict(_delete_=True, type="Views", source=dict(type="Scenes", split="train", length=5000), views=views)
)
train_cfg = dict(max_epochs=24)
val_dataloader = None
val_evaluator = None
val_cfg = None
test_dataloader = None
test_evaluator = None
test_cfg = None
