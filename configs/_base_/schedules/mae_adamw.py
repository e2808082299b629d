# Pretraining of the MAE code: AdamW, learning rate 1.5e-4 x batch / 256, weight decay of the parameters with more
# than one dimension, 800 epochs of batch 4096, 40 of them linear warm-up from zero, then cosine to zero.
global_batch_size = 4096  # images per step, over all processes

optim_wrapper = dict(
    optimizer=dict(type="AdamW", lr=2.4e-3, betas=(0.9, 0.95), weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0),
)
param_scheduler = dict(type="WarmupCosineLR", warmup=40, start_factor=0.0)  # in epochs

train_cfg = dict(max_epochs=800, val_interval=10)
val_cfg = dict()
test_cfg = dict()
