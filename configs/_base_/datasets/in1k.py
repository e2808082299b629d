# ImageNet-1K in its usual layout: data_root/train/<wnid>/*.JPEG and data_root/val/<wnid>/*.JPEG.
data_root = "data/imagenet"

train_dataloader = dict(
    num_workers=12,
    pin_memory=True,
    persistent_workers=True,
    dataset=dict(
        type="ClassificationDataset",
        source=dict(type="ImageNet", split="train"),
        transforms=[
            dict(type="DecodeRandomResizedCrop", size=224),
            dict(type="RandomHorizontalFlip"),
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
        source=dict(type="ImageNet", split="val"),
        transforms=[
            dict(type="DecodeResize", size=256),
            dict(type="CenterCrop", size=224),
        ],
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(type="ClassificationMetric", topk=(1, 5))
test_evaluator = val_evaluator
