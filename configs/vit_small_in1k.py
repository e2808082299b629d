"""ViT-Small (22,050,664 parameters) on ImageNet-1K by CRATE's recipe (Yu et al., NeurIPS 2023, Appendix B.1).

    tools/dist_train.sh configs/vit_small_in1k.py 16 --amp --cfg-options data_root=/data/imagenet

The paper reports 72.4 % top-1 (Table 1). Not reproduced here.
"""

_base_ = ["vit_tiny_in1k.py"]

model = dict(backbone=dict(arch="small"))
