"""The segmentation paper's CRATE-S/8 (14,118,097 parameters) on ImageNet-21K (Yu et al., CPAL 2024, arXiv 2308.16271).

    tools/dist_train.sh configs/crate_small8_in21k.py 16 --amp --cfg-options data_root=/data/imagenet21k
    python tools/analyze.py attention configs/crate_small8_in21k.py crate_small8.pth --images cat.jpg --layers 11

The paper's size S is 'tiny' here, with patches of 8. The paper reports 23.9 mIoU for its coarse masks on PASCAL VOC12,
and fine-tuned 74.2 % on ImageNet-1K, 97.2 % on CIFAR-10, 84.1 % on CIFAR-100, 92.2 % on Flowers-102 and 77.0 % on Pets.
Not reproduced here.

The recipe is the paper's: Lion, learning rate 9.6e-5, weight decay 0.05, batch 4096, 90 epochs, center crop, flip.
Details that the paper omits are from the NeurIPS paper: 5 epochs of warm-up, cosine, label smoothing 0.1, a resize to
256 before the crop. The data are folders in ImageNet's layout, with 21,841 classes; for training without val/ see
crate_alpha_base_in21k.py. Fine-tuning is that of configs/transfer/ with global_batch_size=256 (128 for B).

The ablation replaces the operators of a layer by --cfg-options:

    MSSA + MLP      "model.backbone.sparsify=dict(type='MLP')" model.backbone.residual=True
    MHSA + ISTA     "model.backbone.compress=dict(type='SoftmaxAttention')"
    MHSA + MLP      all three: the layer of a ViT

The paper reports 23.9 mIoU for MSSA + ISTA, and 22.0, 18.4 and 14.1 for the three variants, in this order.
"""

_base_ = [
    "_base_/models/crate.py",
    "_base_/datasets/in1k.py",
    "_base_/schedules/in1k_lion.py",
    "_base_/default_runtime.py",
]

data_root = "data/imagenet21k"
model = dict(backbone=dict(arch="tiny", patch_size=8), head=dict(num_classes=21841), label_smoothing=0.1)
train_dataloader = dict(
    dataset=dict(
        transforms=[
            dict(type="DecodeResize", size=256),
            dict(type="CenterCrop", size=224),
            dict(type="RandomHorizontalFlip"),
        ]
    )
)
global_batch_size = 4096
optim_wrapper = dict(optimizer=dict(lr=9.6e-5, weight_decay=0.05))
train_cfg = dict(max_epochs=90)
