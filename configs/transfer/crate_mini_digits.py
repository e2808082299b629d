"""The small CRATE of Fashion-MNIST fine-tuned on scikit-learn's digits: a minute on two CPU cores.

    python tools/train.py configs/transfer/crate_mini_digits.py --load-from \\
      work_dirs/crate_mini_fashion_mnist/epoch_12.pth

Without --load-from the same config trains from scratch; --linear-probe trains the head alone.
"""

_base_ = ["../crate_mini_fashion_mnist.py"]

enlarge = dict(type="Resize", size=28)
wobble = dict(type="RandomAffine", degrees=10, translate=(0.0625, 0.0625), scale=(0.9, 1.1), interpolation="bilinear")
model = dict(preprocessor=dict(mean=(0.3053,), std=(0.3758,)))
data_root = None  # the digits come with scikit-learn
train_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(source=dict(_delete_=True, type="Digits", split="train"), transforms=[enlarge, wobble]),
)
val_dataloader = dict(
    batch_size=150, dataset=dict(source=dict(_delete_=True, type="Digits", split="test"), transforms=[enlarge])
)
test_dataloader = dict(
    batch_size=150, dataset=dict(source=dict(_delete_=True, type="Digits", split="test"), transforms=[enlarge])
)

global_batch_size = 64
optim_wrapper = dict(optimizer=dict(lr=5e-4))
train_cfg = dict(max_epochs=10)
