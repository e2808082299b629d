"""scikit-learn's digits for a small model of gray images: half a minute on one CPU core.

    python tools/train.py configs/transfer/digits.py --load-from crate_mini.pth
    python tools/train.py configs/transfer/digits.py --model crate_mini_fashion_mnist

crate_mini.pth stands for the last checkpoint of crate_mini_fashion_mnist.py. With --model instead, the model is trained
from scratch; --linear-probe trains only the head. Results: configs/RESULTS.md.
"""

_base_ = ["../_base_/datasets/digits.py", "../_base_/schedules/small_adamw.py", "../_base_/default_runtime.py"]

model = dict(
    head=dict(num_classes=10, pool="mean"),
    preprocessor=dict(mean=(0.3053,), std=(0.3758,)),
    label_smoothing=0.1,
)
enlarge = dict(type="Resize", size="model")  # to the size of the model's images
wobble = dict(type="RandomAffine", degrees=10, translate=(0.0625, 0.0625), scale=(0.9, 1.1), interpolation="bilinear")
train_dataloader = dict(dataset=dict(transforms=[enlarge, wobble]))
val_dataloader = dict(dataset=dict(transforms=[enlarge]))
test_dataloader = dict(dataset=dict(transforms=[enlarge]))

global_batch_size = 64
train_cfg = dict(max_epochs=4)
