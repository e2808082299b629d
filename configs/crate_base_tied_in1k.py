"""CRATE-Base whose MSSA has U^T as its output projection, Eqs. (11)-(12), on ImageNet-1K (Yu et al., NeurIPS 2023).

    tools/dist_train.sh configs/crate_base_tied_in1k.py 16 --amp --cfg-options data_root=/data/imagenet

The paper reports 63.3 % top-1 (Table 3), where a learned projection has 70.8 %. Not reproduced here.

15,708,904 parameters. The authors' code does not have this variant: that the product is scaled as in the default block
is the plausible reading. Table 3's other variant, the majorisation-minimisation sparsifier of Eq. (92), is not here.
"""

_base_ = ["crate_base_in1k.py"]

model = dict(backbone=dict(compress=dict(type="MSSA", tied=True)))
