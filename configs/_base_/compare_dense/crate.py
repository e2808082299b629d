# A small CRATE on scenes; a leaf config sets the decoder. With a linear decoder, crate.py and vit.py have equal
# multiply-adds, within 10 %.
_base_ = ["../segmentation.py"]

model = dict(backbone=dict(type="CRATE", arch=dict(embed_dim=96, depth=4, num_heads=4)))
