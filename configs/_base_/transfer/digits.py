# scikit-learn's digits for models of 28 x 28 gray images: a few epochs of the small recipe.
_base_ = ["../datasets/digits.py", "../schedules/small_adamw.py", "../default_runtime.py"]

enlarge = dict(type="Resize", size=28)
wobble = dict(type="RandomAffine", degrees=10, translate=(0.0625, 0.0625), scale=(0.9, 1.1), interpolation="bilinear")
train_dataloader = dict(dataset=dict(transforms=[enlarge, wobble]))
val_dataloader = dict(dataset=dict(transforms=[enlarge]))
test_dataloader = dict(dataset=dict(transforms=[enlarge]))

global_batch_size = 64
train_cfg = dict(max_epochs=4)
