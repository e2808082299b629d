# A common recipe for small models of several families: 5 epochs of Fashion-MNIST, padded by 2 black pixels for 16
# patches of 8 x 8 pixels (ToST's stem supports patches of 8 and 16 only). A leaf config sets the backbone. The configs
# in compare/ have equal multiply-adds, within 10 %. Results: configs/RESULTS.md.
_base_ = ["datasets/fashion_mnist.py", "schedules/small_adamw.py", "default_runtime.py"]

model = dict(
    type="ImageClassifier",
    backbone=dict(img_size=32, patch_size=8, in_channels=1),
    head=dict(type="LinearHead", num_classes=10, pool="cls"),
    preprocessor=dict(type="ImagePreprocessor", mean=(0.2860,), std=(0.3530,)),
    label_smoothing=0.1,
)
# Padding, and a random shift by up to 2 pixels as in crate_mini_fashion_mnist.py.
train_dataloader = dict(
    dataset=dict(transforms=[dict(type="RandomCrop", size=32, padding=4), dict(type="RandomHorizontalFlip")])
)
val_dataloader = dict(dataset=dict(transforms=[dict(type="Pad", padding=2)]))
test_dataloader = val_dataloader

train_cfg = dict(max_epochs=5)
