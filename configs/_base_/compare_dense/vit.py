# A small ViT on scenes, whose tokens have passed a LayerNorm; a leaf config sets the decoder.
_base_ = ["../segmentation.py"]

model = dict(backbone=dict(type="ViT", arch=dict(embed_dim=60, depth=4, num_heads=4)))
