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
# Hooks of your own go here, or under a name of their own in default_hooks. The guards, which keep what
# crate_mm/engine/README.md promises, stand apart from both: guards = dict(result_file=None) switches one off.
custom_hooks = []

visualizer = dict(
    type="Visualizer",
    vis_backends=[dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")],
)
log_processor = dict(
    type="LogProcessor",
    window_size=20,
    # What is averaged over the window; MMEngine's default takes in eval/loss and so averages it over epochs.
    mean_pattern=r"^((train|val|test)/)?(loss|time|data_time|grad_norm)",
)

randomness = dict(seed=0)
env_cfg = dict(cudnn_benchmark=True)
load_from = None
resume = False
