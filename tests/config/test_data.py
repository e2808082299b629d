"""What the training data determine: the number of classes, and the batch of a small dataset."""

import re

import pytest

from crate_mm.config import fill_from_data, load_config
from crate_mm.datasets import Digits
from crate_mm.registry import DATASETS


@DATASETS.register_module()
class NamelessDigits(Digits):
    classes = None


def digits(**overrides):
    return load_config("debug", {key.replace("__", "."): value for key, value in overrides.items()})


@pytest.mark.parametrize(
    ("options", "training", "classes", "batch", "notes"),
    [
        ({}, True, 10, 128, []),
        (
            dict(model__head__num_classes=None),
            False,
            10,
            128,
            ["num_classes=10, the classes of the training data: 0, 1"],
        ),
        (dict(model__head__num_classes=3), True, 3, 128, []),  # refused later, with the task's message
        (dict(fit_batch=True), True, 10, 128, []),
        (dict(fit_batch=True, global_batch_size=5000), True, 10, 1347, ["batch_size=1347, .* batch of 5000 is larger"]),
        (dict(fit_batch=True, global_batch_size=5000), False, 10, 5000, []),
    ],
)
def test_data_fill_in_what_the_config_leaves_to_them(options, training, classes, batch, notes):
    cfg = digits(**options)
    before = cfg.to_dict()
    filled, told = fill_from_data(cfg, training)
    assert (filled.model.head.num_classes, filled.global_batch_size) == (classes, batch)
    assert len(told) == len(notes)
    assert all(re.search(pattern, note) for pattern, note in zip(notes, told))
    assert cfg.to_dict() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(train_dataloader=None), "is None .* and the config has no train_dataloader: set model.head.num_classes"),
        (
            dict(train_dataloader__dataset__source__type="NamelessDigits"),
            "do not name their classes: set --cfg-options",
        ),
        (dict(train_dataloader__dataset__source={"type": "ClassFolders", "root": "no"}), "is None.*no is not a folder"),
    ],
)
def test_an_unknown_number_of_classes_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        fill_from_data(digits(model__head__num_classes=None, **options))
