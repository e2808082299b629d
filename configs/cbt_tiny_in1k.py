"""CBT-T (1,789,192 parameters) on ImageNet-1K by its authors' code (Wen, Huang and Li, NeurIPS 2025).

    tools/dist_train.sh configs/cbt_tiny_in1k.py 8 --amp --cfg-options data_root=/data/imagenet
    tools/dist_train.sh configs/cbt_tiny_in1k.py 8 --amp --cfg-options data_root=/data/imagenet model.backbone.arch=base

Lion with weight decay on all parameters, 150 epochs of batch 256, random resized crop and flip, fp16. The authors
change the learning rate once per epoch, by the smaller of a linear warm-up of 20 epochs and a cosine that begins with
the first epoch; here, both are one curve by step, and the cosine begins after the warm-up.

The authors report 63.2, 71.4, 73.4 and 74.4 % top-1 for T, S, B and L (arch tiny, small, base, large). Not reproduced
here. For their comparison of operators, set model.backbone.compress.type=MSSA, or TSSA with
model.backbone.compress.proj_bias=False.
"""

_base_ = [
    "_base_/models/cbt.py",
    "_base_/datasets/in1k.py",
    "_base_/schedules/in1k_lion.py",
    "_base_/default_runtime.py",
]

model = dict(backbone=dict(arch="tiny"))
global_batch_size = 256
optim_wrapper = dict(optimizer=dict(lr=2e-4, betas=(0.9, 0.99), weight_decay=0.05))
param_scheduler = dict(warmup=20, start_factor=0.05)
