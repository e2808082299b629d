# scikit-learn's handwritten digits of 8 x 8 pixels: 1,347 for training, a stratified quarter (450) for testing.
data_root = None  # included in scikit-learn

train_dataloader = dict(
    num_workers=0,
    dataset=dict(
        type="ClassificationDataset",
        source=dict(type="Digits", split="train"),
        transforms=[],
    ),
)
val_dataloader = dict(
    batch_size=150,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="ClassificationDataset", source=dict(type="Digits", split="test"), transforms=[]),
)
test_dataloader = val_dataloader

val_evaluator = dict(type="ClassificationMetric", topk=(1, 5))
test_evaluator = val_evaluator
