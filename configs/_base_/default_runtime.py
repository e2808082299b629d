default_scope = "crate_mm"

default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=50),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(type="CheckpointHook", interval=1, max_keep_ckpts=3, save_best="auto"),
    sampler_seed=dict(type="DistSamplerSeedHook"),
    runtime_info=dict(type="RuntimeInfoHook"),
    progress=dict(type="ProgressLine"),
)
# Add custom hooks here or under a new name in default_hooks. The guards (crate_mm/engine/README.md) are separate from
# both: guards = dict(result_file=None) disables a guard.
custom_hooks = []

visualizer = dict(
    type="Visualizer",
    vis_backends=[dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")],
)
log_processor = dict(
    type="LogProcessor",
    window_size=20,
    # Values to average over the window. MMEngine's default includes eval/loss, which it would average over epochs.
    mean_pattern=r"^((train|val|test)/)?(loss|compression|expansion|patch_similarity|time|data_time|grad_norm)",
)

randomness = dict(seed=0)
env_cfg = dict(cudnn_benchmark=True)
load_from = None
resume = False
