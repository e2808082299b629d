# A common recipe for small language models of several families: 3 epochs on Python's own library, on two CPU cores. An
# epoch is 200 steps of 32 windows of 256 bytes. A leaf config sets the backbone. The configs in compare_language/ have
# the same width and depth.
_base_ = ["datasets/python_library.py", "default_runtime.py"]

model = dict(type="LanguageModel", backbone=dict(vocab_size=256, context_length=256), tokenizer="bytes")

global_batch_size = 32  # windows per step, over all processes
optim_wrapper = dict(
    optimizer=dict(type="AdamW", lr=2e-3, betas=(0.9, 0.95), weight_decay=0.1),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = dict(type="WarmupCosineLR", warmup=0.25, end_factor=0.1)  # in epochs
train_cfg = dict(max_epochs=3, val_interval=1)
val_cfg = dict()
test_cfg = dict()
