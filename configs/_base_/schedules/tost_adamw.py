# ToST's training on ImageNet-1K, from the authors' code: AdamW, learning rate 5e-4 x batch / 512, 400 epochs of batch
# 1024, 5 of them linear warm-up from 1e-6, then cosine to 1e-5; weights averaged with decay 0.99996. One-dimensional
# parameters, biases and the CLS token have no weight decay.
global_batch_size = 1024  # images per step, over all processes

auto_scale_lr = dict(base_batch_size=512, enable=True)
ema_momentum = 4e-5
optim_wrapper = dict(
    optimizer=dict(type="AdamW", lr=5e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        flat_decay_mult=0.0,
        custom_keys={"cls_token": dict(decay_mult=0.0)},
    ),
)
param_scheduler = dict(type="WarmupCosineLR", warmup=5, start_factor=1e-6 / 1e-3, end_factor=1e-5 / 1e-3)  # in epochs

train_cfg = dict(max_epochs=400, val_interval=1)
val_cfg = dict()
test_cfg = dict()
