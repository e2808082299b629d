# CBT on 224 x 224 RGB images; a leaf config sets the size, model.backbone.arch.
model = dict(
    type="ImageClassifier",
    backbone=dict(type="CBT", img_size=224, patch_size=16),
    head=dict(type="LinearHead", num_classes=1000, pool="cls"),
    preprocessor=dict(type="ImagePreprocessor", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    label_smoothing=0.1,
)
