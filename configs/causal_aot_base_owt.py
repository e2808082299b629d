"""The attention-only transformer AoT-MSSA (102 M parameters) as a language model (Wang et al., ICML 2025).

    tools/dist_train.sh configs/causal_aot_base_owt.py 8 --cfg-options data_root=/data/openwebtext

The authors published no code. Width and depth match their number of parameters. The recipe, an assumption, is that of
causal_crate_base_owt.py. The authors report a zero-shot cross entropy of 4.70 on LAMBADA, 6.03 on PTB and 4.65 on
WikiText; with arch="medium" (182 M) 4.47, 5.08 and 4.22. For AoT-MHSA, set model.backbone.compress to
dict(type="SoftmaxAttention", causal=True). Not reproduced here.
"""

_base_ = ["_base_/language.py"]

model = dict(backbone=dict(type="CausalAoT", arch="base"))
