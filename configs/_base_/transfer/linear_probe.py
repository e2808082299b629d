# Settings of --linear-probe: the backbone is frozen, and the head has its own optimizer settings.
model = dict(freeze_backbone=True)
optim_wrapper = dict(optimizer=dict(_delete_=True, type="AdamW", lr=1e-3, weight_decay=0.0))
param_scheduler = dict(warmup=0)
