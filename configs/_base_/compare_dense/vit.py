# A small ViT, with a final LayerNorm, on scenes; a leaf config sets the decoder.
_base_ = ["../segmentation.py"]

model = dict(backbone=dict(type="ViT", arch=dict(embed_dim=60, depth=4, num_heads=4)))
