# Token files of uint16, data_root/train.bin and data_root/val.bin, written by crate-mm pack-text or nanoGPT's scripts.
# As in nanoGPT, a training sample is 1024 tokens from a random place, with replacement. An epoch is 1000 steps of 480
# samples. The validation counts each token once. For nanoGPT's, 200 batches of 12 random samples, set
# val_dataloader.dataset.random_windows=2400.
data_root = "data/openwebtext"

train_dataloader = dict(
    num_workers=2,
    persistent_workers=True,
    dataset=dict(type="Windows", tokens="train.bin", length=1024, random_windows=480_000),
)
val_dataloader = dict(
    batch_size=12,
    num_workers=2,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="Windows", tokens="val.bin", length=1024, drop_last=False),
)
test_dataloader = val_dataloader

val_evaluator = dict(type="TokenLoss")
test_evaluator = val_evaluator
