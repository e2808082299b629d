default_scope = "crate_mm"

default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=50),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(type="CheckpointHook", interval=1, max_keep_ckpts=3, save_best="eval/top1"),
    sampler_seed=dict(type="DistSamplerSeedHook"),
    runtime_info=dict(type="RuntimeInfoHook"),
)
custom_hooks = [
    dict(type="SeedEachIteration"),
    dict(type="StopOnNonFiniteLoss"),
    dict(type="UnreadableImages"),
    dict(type="TrimLogHistory"),
    dict(type="ResultFile"),
]
ema_momentum = None  # 2e-4, say, keeps an average of the weights, which is what is evaluated and saved
compile_blocks = None  # compile the repeated block: True, False, or None for where there is a GPU
activation_checkpointing = False  # recompute the blocks in the backward pass, for less memory
zero = False  # split the optimizer's state over the processes, for less memory

visualizer = dict(
    type="Visualizer",
    vis_backends=[dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")],
)
log_processor = dict(
    window_size=20,
    # What is averaged over the window; MMEngine's default takes in eval/loss and so averages it over epochs.
    mean_pattern=r"^((train|val|test)/)?(loss|time|data_time|grad_norm)",
)

randomness = dict(seed=0)
env_cfg = dict(cudnn_benchmark=True)
load_from = None
resume = False
