# The training of nanoGPT, crate-lm and causal ToST: AdamW, learning rate 6e-4, 600,000 steps of 480 windows of 1024
# tokens, 2000 of them linear warm-up from zero, then cosine to 6e-5; weight decay of the parameters with more than one
# dimension; gradients clipped at 1; bf16. An epoch of _base_/datasets/tokens.py is 1000 steps.
global_batch_size = 480  # windows per step, over all processes

optim_wrapper = dict(
    type="AmpOptimWrapper",
    dtype="bfloat16",
    optimizer=dict(type="AdamW", lr=6e-4, betas=(0.9, 0.95), weight_decay=0.1),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = dict(type="WarmupCosineLR", warmup=2, start_factor=0.0, end_factor=0.1)  # in epochs

train_cfg = dict(max_steps=600_000, val_interval=1)
val_cfg = dict()
test_cfg = dict()
