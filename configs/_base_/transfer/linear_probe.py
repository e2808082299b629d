# What --linear-probe changes in a config: the backbone is frozen, and the head trains at a rate of its own.
model = dict(freeze_backbone=True)
optim_wrapper = dict(optimizer=dict(_delete_=True, type="AdamW", lr=1e-3, weight_decay=0.0))
param_scheduler = dict(warmup=0)
