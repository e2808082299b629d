# Token files of uint16, data_root/train.bin and data_root/val.bin, of crate-mm pack-text or nanoGPT's scripts. As in
# nanoGPT, a training sample is 1024 tokens from a random place, with replacement; a thousand steps of 480 such
# samples are an epoch. The validation counts each token of its file once. nanoGPT's, 200 batches of 12 random samples:
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
