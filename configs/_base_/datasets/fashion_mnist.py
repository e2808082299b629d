# Fashion-MNIST, 60,000 training and 10,000 test images of 28 x 28 gray pixels: data_root/FashionMNIST/raw/.
data_root = "data"

train_dataloader = dict(
    num_workers=2,
    persistent_workers=True,
    dataset=dict(
        type="ClassificationDataset",
        source=dict(type="FashionMNIST", train=True),
        transforms=[dict(type="RandomCrop", size=28, padding=2), dict(type="RandomHorizontalFlip")],
    ),
)
val_dataloader = dict(
    batch_size=500,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="ClassificationDataset", source=dict(type="FashionMNIST", train=False), transforms=[]),
)
test_dataloader = val_dataloader

val_evaluator = dict(type="ClassificationMetric", topk=(1, 5))
test_evaluator = val_evaluator
