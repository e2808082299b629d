# A ViT with a decoder of 150 classes, evaluated by a sliding window of 512 pixels; a leaf config sets the rest.
model = dict(
    type="Segmentation",
    backbone=dict(type="ViT", img_size=512, patch_size=16, drop_path=0.1),
    head=dict(num_classes=150),
    window=512,
    stride=512,
    preprocessor=dict(type="ImagePreprocessor", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
)
