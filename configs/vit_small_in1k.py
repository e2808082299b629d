"""ViT-Small (22,050,664 parameters) on ImageNet-1K by CRATE's recipe (Yu et al., NeurIPS 2023, Appendix B.1).

    tools/dist_train.sh configs/vit_small_in1k.py 16 --amp --cfg-options data_root=/data/imagenet

The paper reports 72.4 % top-1 (Table 1). Not reproduced here.
"""

_base_ = [
    "_base_/models/vit.py",
    "_base_/datasets/in1k.py",
    "_base_/schedules/in1k_lion.py",
    "_base_/default_runtime.py",
]

model = dict(backbone=dict(arch="small"), label_smoothing=0.1)
