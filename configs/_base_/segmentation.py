# A small segmentation of scenes; a leaf config sets the backbone and the decoder.
_base_ = ["datasets/scenes.py", "schedules/small_adamw.py", "default_runtime.py"]

model = dict(
    type="Segmentation",
    backbone=dict(img_size=64, patch_size=8, in_channels=1),
    head=dict(num_classes=11),
    preprocessor=dict(type="ImagePreprocessor", mean=(0.46,), std=(0.16,)),
)
global_batch_size = 16
optim_wrapper = dict(optimizer=dict(lr=3e-3))
train_cfg = dict(max_epochs=6)
