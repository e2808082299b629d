"""Causal ToST-L (655 M parameters) on OpenWebText (Wu et al., ICLR 2025), by the authors' recipe.

    tools/dist_train.sh configs/causal_tost_large_owt.py 8 --cfg-options data_root=/data/openwebtext

The data are as in causal_crate_base_owt.py. The authors report a zero-shot cross entropy of 2.72 on OpenWebText, 4.32
on LAMBADA, 3.99 on WikiText and 5.03 on PTB. Not reproduced here. The authors' config resumes from a file of theirs;
here, training starts from random weights.
"""

_base_ = ["_base_/language.py"]

model = dict(backbone=dict(type="CausalToST", arch="large"))
