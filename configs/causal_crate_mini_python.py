"""A small causal CRATE on the source of Python's own library, by bytes: no download.

    python tools/train.py configs/causal_crate_mini_python.py
    python tools/generate.py work_dirs/causal_crate_mini_python/epoch_3.pth --prompt "def "

Result: 2.337 nats (3.37 bits) per byte after the last epoch (seed 0), on the library of Python 3.11.7; 6 minutes on one
core beside other jobs. Its text is laid out like Python source, but has few words. The library differs between versions
of Python; a result must name the version.
"""

_base_ = ["_base_/language_mini.py"]

model = dict(backbone=dict(type="CausalCRATE", arch=dict(embed_dim=128, depth=4, num_heads=4)))
