_base_ = ["../../configs/debug.py"]
custom_imports = dict(imports=["aot"])
model = dict(
    backbone=dict(
        _delete_=True,
        type="AoT",
        arch=dict(embed_dim=48, depth=2, num_heads=3),
        img_size=8,
        patch_size=2,
        in_channels=1,
    ),
    head=dict(pool="mean"),
)
