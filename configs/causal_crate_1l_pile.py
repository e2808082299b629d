"""Causal CRATE of one layer, of width 512, on the Pile: the model of crate-lm's training script.

    tools/dist_train.sh configs/causal_crate_1l_pile.py 8 --cfg-options data_root=/data/pile

The recipe is that of causal_crate_base_owt.py. The authors report no loss. Not reproduced here.
"""

_base_ = ["causal_crate_base_owt.py"]

data_root = "data/pile"
model = dict(backbone=dict(arch="1l"))
