"""CRATE-Base with U^T as the output projection of MSSA, Eqs. (11)-(12), on ImageNet-1K (Yu et al., NeurIPS 2023).

    tools/dist_train.sh configs/crate_base_tied_in1k.py 16 --amp --cfg-options data_root=/data/imagenet

The paper reports 63.3 % top-1 (Table 3), and 70.8 % with a learned projection. Not reproduced here.

15,708,904 parameters. The authors' code lacks this variant; scaling the product as in the default block is an
assumption. Table 3's other variant, the majorization-minimization sparsifier of Eq. (92), is not implemented.
"""

_base_ = ["crate_base_in1k.py"]

model = dict(backbone=dict(compress=dict(type="MSSA", tied=True)))
