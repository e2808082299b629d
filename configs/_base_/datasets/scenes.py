# Scenes of Fashion-MNIST's articles on textured ground, 64 x 64 gray pixels, with masks of 11 classes. Without
# data_root/FashionMNIST/raw/, the objects are scikit-learn's digits, and the log says so.
data_root = "data"

train_dataloader = dict(
    num_workers=0,
    dataset=dict(
        type="SegmentationDataset",
        source=dict(type="Scenes", split="train", length=2000, objects=(1, 3), scale=(0.5, 0.8)),
        transforms=[
            dict(type="RandomResize", min_size=52, max_size=80),
            dict(type="RandomCrop", size=64, pad_if_needed=True),
            dict(type="RandomHorizontalFlip"),
        ],
    ),
)
val_dataloader = dict(
    batch_size=50,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="SegmentationDataset",
        source=dict(type="Scenes", split="val", length=500, objects=(1, 3), scale=(0.5, 0.8)),
        transforms=[],
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(type="SegmentationMetric")
test_evaluator = val_evaluator
