# CRATE-alpha's training on ImageNet-21K, from the authors' configuration: Adam with betas 0.9 and 0.95 and decoupled
# weight decay, learning rate 5e-5 x batch / 256, 91 epochs of batch 4096, 10 of them linear warm-up, then cosine to
# 1e-6, gradients clipped at 1. The warm-up's initial factor is unknown; here, it is 0.01.
global_batch_size = 4096  # images per step, over all processes

auto_scale_lr = dict(base_batch_size=256, enable=True)
optim_wrapper = dict(
    optimizer=dict(type="AdamW", lr=5e-5, betas=(0.9, 0.95), weight_decay=0.1),
    clip_grad=dict(max_norm=1.0),
    # Only the authors' parameters named 'kernel' decay: U, W_o, patch embedding and head.
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        flat_decay_mult=0.0,
        custom_keys={
            "sparsify.d": dict(decay_mult=0.0),  # D and D1: sparsify.dictionary, sparsify.decoder
            "embedding.cls_token": dict(decay_mult=0.0),
            "embedding.pos_embed": dict(decay_mult=0.0),
        },
    ),
)
param_scheduler = dict(type="WarmupCosineLR", warmup=10, end_factor=1e-6 / 8e-4)  # in epochs

train_cfg = dict(max_epochs=91, val_interval=1)
val_cfg = dict()
test_cfg = dict()
