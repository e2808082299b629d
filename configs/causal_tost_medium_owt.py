"""Causal ToST-M (304 M parameters) on OpenWebText (Wu et al., ICLR 2025), by the authors' recipe.

    tools/dist_train.sh configs/causal_tost_medium_owt.py 8 --cfg-options data_root=/data/openwebtext

The data are as in causal_crate_base_owt.py. The authors report a zero-shot cross entropy of 2.88 on OpenWebText, 4.45
on LAMBADA, 4.30 on WikiText and 5.64 on PTB. Not reproduced here. The authors' config resumes from a file of theirs;
here, training starts from random weights.
"""

_base_ = ["_base_/language.py"]

model = dict(backbone=dict(type="CausalToST", arch="medium"))
