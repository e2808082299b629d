"""The size and the channels of the model's images in a config's transforms."""

import pytest
import torch

from crate_mm.config import fill_images, load_config, resolve_config
from crate_mm.models.backbone import registered_backbones

CROP = dict(type="RandomCrop", size="model", padding="model/8")
STEPS = [dict(type="ConvertChannels", channels="model"), dict(type="Resize", size="model"), CROP]


def config(transforms, **backbone):
    options = {f"model.backbone.{name}": value for name, value in backbone.items()}
    return load_config("debug", {"train_dataloader.dataset.transforms": transforms, **options})


def transforms_of(cfg):
    return cfg.train_dataloader.dataset.transforms


@pytest.mark.parametrize(
    ("img_size", "channels", "size", "padding"),
    [(8, 1, (8, 8), 1), ((16, 32), 3, (16, 32), (4, 2)), (28, 1, (28, 28), 3)],
)
def test_the_models_size_and_channels_are_filled_in(img_size, channels, size, padding):
    cfg = config(STEPS, img_size=img_size, in_channels=channels, patch_size=4)
    state = torch.get_rng_state()
    fill_images(cfg)
    assert torch.equal(torch.get_rng_state(), state)
    filled = [dict(STEPS[0], channels=channels), dict(STEPS[1], size=size), dict(CROP, size=size, padding=padding)]
    assert transforms_of(cfg) == filled
    fill_images(cfg)  # the Runner and resolve_config() each call it
    assert transforms_of(cfg) == filled


def test_nested_transforms_are_filled_in_and_other_values_stay():
    nested = [dict(type="RandomApply", transforms=[CROP]), dict(type="Resize", size=9), dict(type="CenterCrop", size=8)]
    cfg = config(nested)
    cfg.test_dataloader.dataset.source.note = "model"
    fill_images(cfg)
    assert transforms_of(cfg) == [dict(nested[0], transforms=[dict(CROP, size=(8, 8), padding=1)]), *nested[1:]]
    assert cfg.test_dataloader.dataset.source.note == "model"
    assert transforms_of(resolve_config(config(nested), world_size=1))[0].transforms[0].size == (8, 8)


@pytest.mark.parametrize(
    "name", ["crate_tiny_in1k", "crate_alpha_base_in21k", "tost_tiny_in1k", "cbt_tiny_in1k", "vit_tiny_in1k"]
)
def test_every_family_declares_its_images_without_memory_for_its_weights(name):
    cfg = load_config("transfer/pets", model=load_config(name).model.to_dict())
    fill_images(cfg)
    assert transforms_of(cfg)[:2] == [dict(STEPS[0], channels=3), dict(STEPS[1], size=(224, 224))]


def test_a_config_without_a_model_is_refused_unless_its_data_alone_are_read():
    cfg = load_config("transfer/pets")
    with pytest.raises(ValueError, match="take the size of the model's images, but the config defines no model"):
        fill_images(cfg)
    fill_images(cfg, needs_model=False)
    assert transforms_of(cfg)[:2] == [dict(STEPS[0], channels=3), dict(STEPS[1], size=(224, 224))]


def test_a_model_that_declares_no_images_is_named(monkeypatch):
    monkeypatch.setattr(registered_backbones()["CRATE"], "input_spec", None)
    with pytest.raises(ValueError, match="which the model ImageClassifier does not declare: set numbers in place of"):
        fill_images(config(STEPS))
