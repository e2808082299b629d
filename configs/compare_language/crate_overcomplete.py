"""A small causal CRATE with an overcomplete dictionary on the source of Python's own library, by bytes.

python tools/train.py configs/compare_language/crate_overcomplete.py
"""

_base_ = ["../_base_/language_mini.py"]

model = dict(backbone=dict(type="CausalCRATE", overcomplete=True, arch=dict(embed_dim=128, depth=4, num_heads=4)))
