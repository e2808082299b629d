# SimDINO's code: AdamW, learning rate 5e-4 x batch / 256, 100 epochs of batch 512, 10 of them linear warm-up from zero,
# then cosine to 1e-6; weight decay of the parameters with more than one dimension, from 0.04 to 0.4 as a cosine; each
# parameter's gradient is clipped by its own norm. The official warm-up is one step shorter.
global_batch_size = 512  # images per step, over all processes

optim_wrapper = dict(
    optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.04),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0),
    clip_grad=dict(max_norm=3.0, per_parameter=True),
)
param_scheduler = [
    dict(type="WarmupCosineLR", warmup=10, start_factor=0.0, end_factor=1e-3),  # in epochs
    dict(type="CosineWeightDecay", end_factor=10),
]

train_cfg = dict(max_epochs=100, val_interval=10)
val_cfg = dict()
test_cfg = dict()
