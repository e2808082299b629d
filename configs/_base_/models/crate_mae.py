# CRATE-MAE on 224 x 224 RGB images; a leaf config sets the size, model.backbone.arch.
model = dict(
    type="MaskedAutoencoder",
    backbone=dict(type="CRATEMAE", img_size=224, patch_size=16, ista_step_size=0.1, ista_lambda=0.5),
    mask_ratio=0.75,
    norm_pix_loss=True,
    preprocessor=dict(type="ImagePreprocessor", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
)
