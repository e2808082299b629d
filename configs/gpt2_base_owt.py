"""GPT-2 (124 M parameters) on OpenWebText, the baseline of the other language models, by the recipe of nanoGPT.

    tools/dist_train.sh configs/gpt2_base_owt.py 8 --cfg-options data_root=/data/openwebtext

The data are as in causal_crate_base_owt.py. The authors of causal ToST report a cross entropy of 2.84 on OpenWebText,
4.32 on LAMBADA, 4.13 on WikiText and 5.75 on PTB. Not reproduced here.
"""

_base_ = ["_base_/language.py"]

model = dict(backbone=dict(type="GPT2", arch="base", bias=False))
