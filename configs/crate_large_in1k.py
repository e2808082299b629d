"""CRATE-Large on ImageNet-1K by the paper's recipe (Yu et al., NeurIPS 2023, Appendix B.1).

    tools/dist_train.sh configs/crate_large_in1k.py 16 --amp --cfg-options data_root=/data/imagenet

The paper reports 71.3 % top-1 (Table 1). Not reproduced here.
"""

_base_ = ["crate_base_in1k.py"]

model = dict(backbone=dict(arch="large"))
