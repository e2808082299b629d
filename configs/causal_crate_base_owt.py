"""Causal CRATE-Base (60,699,648 parameters) on OpenWebText, by the recipe of crate-lm.

    tools/dist_train.sh configs/causal_crate_base_owt.py 8 --cfg-options data_root=/data/openwebtext

The data are train.bin and val.bin of nanoGPT's prepare.py, or of crate-mm pack-text with GPT-2's tokenizer. The authors
report a zero-shot cross entropy of 3.37 on OpenWebText, 4.91 on LAMBADA, 4.61 on WikiText and 5.53 on PTB. Batches have
480 windows, as in their script; their book says 384. Not reproduced here.
"""

_base_ = ["_base_/language.py"]

model = dict(backbone=dict(type="CausalCRATE", arch="base"))
