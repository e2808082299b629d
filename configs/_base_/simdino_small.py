# SimDINO for small models on Fashion-MNIST: the schedule of the small models, with the weight decay and the clipping of
# SimDINO. A leaf config sets the backbone, the views, and the sizes of the projection.
_base_ = ["datasets/fashion_mnist.py", "schedules/small_adamw.py", "default_runtime.py"]

model = dict(
    type="SelfDistillation",
    group_size=64,
    preprocessor=dict(type="ImagePreprocessor", mean=(0.2860,), std=(0.3530,)),
)
val_evaluator = dict(_delete_=True, type="KNNMetric", k=20, temperature=0.07)
test_evaluator = val_evaluator
optim_wrapper = dict(
    optimizer=dict(weight_decay=0.04),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0),
    clip_grad=dict(max_norm=3.0, per_parameter=True),
)
param_scheduler = [
    dict(type="WarmupCosineLR", warmup=1),  # in epochs
    dict(type="CosineWeightDecay", end_factor=10),
]
