"""Causal CRATE with an overcomplete dictionary (81,934,848 parameters) on the Pile (Bai and Ma, CPAL 2025).

    tools/dist_train.sh configs/causal_crate_overcomplete_pile.py 8 --cfg-options data_root=/data/pile

The data are token files of the Pile without copyrighted parts (monology/pile-uncopyrighted), as in
causal_crate_base_owt.py. The paper's models have 1 to 12 layers. Another model explains their neurons up to 103 %
(relative) better than GPT-2's. Not reproduced here.
"""

_base_ = ["causal_crate_base_owt.py"]

data_root = "data/pile"
model = dict(backbone=dict(overcomplete=True))
