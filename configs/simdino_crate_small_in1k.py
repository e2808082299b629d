"""CRATE-Small pretrained on ImageNet-1K by the recipe of simdino_vit_base_in1k.py, which was made for a ViT.

    tools/dist_train.sh configs/simdino_crate_small_in1k.py 8 --amp --cfg-options data_root=/data/imagenet

No results are published, and none were measured here.
"""

_base_ = ["simdino_vit_base_in1k.py"]

model = dict(
    backbone=dict(_delete_=True, type="CRATE", arch="small", img_size=224, patch_size=16, drop_path=0.1),
)
