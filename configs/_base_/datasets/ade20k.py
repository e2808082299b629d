# ADE20K's 150 classes: data_root/ADEChallengeData2016/. Segmenter's augmentation with crops of 512 pixels; evaluation
# in the pixels of the original masks.
data_root = "data"

train_dataloader = dict(
    num_workers=10,
    pin_memory=True,
    persistent_workers=True,
    dataset=dict(
        type="SegmentationDataset",
        source=dict(type="ADE20K", split="train"),
        transforms=[
            dict(type="ScaleJitter", target_size=(2048, 512), scale_range=(0.5, 2.0)),
            dict(type="RandomClassCrop", size=512, pad_if_needed=True, max_share=0.75),
            dict(type="RandomHorizontalFlip"),
            dict(type="RandomPhotometricDistort"),
        ],
    ),
)
val_dataloader = dict(
    batch_size=1,  # images of several sizes
    num_workers=10,
    pin_memory=True,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="SegmentationDataset",
        source=dict(type="ADE20K", split="val"),
        transforms=[dict(type="Resize", size=512, max_size=2048)],
        transform_masks=False,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(type="SegmentationMetric")
test_evaluator = val_evaluator
