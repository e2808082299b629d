"""A small attention-only transformer, AoT-MSSA, on the source of Python's own library, by bytes.

python tools/train.py configs/compare_language/aot.py
"""

_base_ = ["../_base_/language_mini.py"]

model = dict(backbone=dict(type="CausalAoT", arch=dict(embed_dim=128, depth=4, num_heads=4)))
