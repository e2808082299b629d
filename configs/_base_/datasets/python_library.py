# The source of Python's own standard library, as bytes: nothing to download. 5 % of the files are for validation.
data_root = None  # included in Python

train_dataloader = dict(
    num_workers=0,
    dataset=dict(type="PythonLibrary", split="train", length=256, random_windows=6400),
)
val_dataloader = dict(
    batch_size=32,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="PythonLibrary", split="val", length=256),
)
test_dataloader = val_dataloader

val_evaluator = dict(type="TokenLoss")
test_evaluator = val_evaluator
