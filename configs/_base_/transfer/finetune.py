# Fine-tuning as in the paper, Appendix B.1: AdamW 5e-5, weight decay 0.01, batch 512, random crop, flip and
# RandAugment(2, 14). Images have the model's image size and channels (the paper's size: 224 x 224). Details that the
# paper omits are from the official code: 200 epochs, cosine without warm-up, no label smoothing, tests on the whole
# resized image.
_base_ = ["../default_runtime.py"]

global_batch_size = 512
optim_wrapper = dict(optimizer=dict(type="AdamW", lr=5e-5, weight_decay=0.01))
param_scheduler = dict(type="WarmupCosineLR", warmup=0)  # in epochs
train_cfg = dict(max_epochs=200, val_interval=1)
val_cfg = dict()
test_cfg = dict()

data_root = "data"  # parent of the dataset's folder; --cfg-options ...source.download=True downloads it
train_dataloader = dict(
    num_workers=12,
    pin_memory=True,
    persistent_workers=True,
    dataset=dict(
        type="ClassificationDataset",
        transforms=[
            dict(type="ConvertChannels", channels="model"),
            dict(type="Resize", size="model"),
            dict(type="RandomCrop", size="model", padding="model/8"),  # an eighth, like 4 of CIFAR's 32 pixels
            dict(type="RandomHorizontalFlip"),
            dict(type="RandAugment", num_ops=2, magnitude=14),
        ],
    ),
)
val_dataloader = dict(
    batch_size=256,
    num_workers=12,
    pin_memory=True,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="ClassificationDataset",
        transforms=[dict(type="ConvertChannels", channels="model"), dict(type="Resize", size="model")],
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(type="ClassificationMetric", topk=(1, 5))
test_evaluator = val_evaluator
