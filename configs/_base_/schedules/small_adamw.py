# Small models on small images: AdamW, 12 epochs of batch 256, one of them linear warm-up, then cosine.
global_batch_size = 256  # images per step, over all processes

optim_wrapper = dict(
    optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = dict(type="WarmupCosineLR", warmup=1)  # in epochs

train_cfg = dict(max_epochs=12, val_interval=1)
val_cfg = dict()
test_cfg = dict()
