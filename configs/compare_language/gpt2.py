"""A small GPT-2 on the source of Python's own library, by bytes.

python tools/train.py configs/compare_language/gpt2.py
"""

_base_ = ["../_base_/language_mini.py"]

model = dict(backbone=dict(type="GPT2", arch=dict(embed_dim=128, depth=4, num_heads=4)))
