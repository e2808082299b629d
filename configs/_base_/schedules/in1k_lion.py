# The recipe of the paper, Appendix B.1: Lion, 150 epochs of batch 2048, 5 of them linear warm-up, then cosine.
global_batch_size = 2048  # images per step, over all processes

optim_wrapper = dict(optimizer=dict(type="Lion", lr=2.4e-4, weight_decay=0.5))
param_scheduler = dict(type="WarmupCosineLR", warmup=5)  # in epochs

train_cfg = dict(max_epochs=150, val_interval=1)
val_cfg = dict()
test_cfg = dict()
