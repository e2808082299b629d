"""Causal ToST-B (110 M parameters) on OpenWebText (Wu et al., ICLR 2025), by the authors' recipe.

    tools/dist_train.sh configs/causal_tost_base_owt.py 8 --cfg-options data_root=/data/openwebtext

The data are as in causal_crate_base_owt.py. The authors report a zero-shot cross entropy of 3.20 on OpenWebText, 4.98
on LAMBADA, 4.77 on WikiText and 6.39 on PTB. Not reproduced here.
"""

_base_ = ["_base_/language.py"]

model = dict(backbone=dict(type="CausalToST", arch="base"))
optim_wrapper = dict(optimizer=dict(weight_decay=0.01))
