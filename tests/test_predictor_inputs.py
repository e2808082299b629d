"""What ``Predictor`` takes for a list of images, and what it refuses."""

import numpy as np
import pytest
import torch
from PIL import Image

from crate_mm import Predictor, get_model


@pytest.fixture(scope="module")
def predict():
    torch.manual_seed(0)
    return Predictor(get_model("crate_tiny", num_classes=3, img_size=32), batch_size=2)


def pictures():
    return [Image.new("RGB", (9, 7), color) for color in ("red", "green", "blue")]


@pytest.mark.parametrize(
    "kind", [tuple, iter, lambda images: (i for i in images), lambda images: map(np.asarray, images)]
)
def test_whatever_has_an_order_is_taken(predict, kind):
    assert predict(kind(pictures())) == predict(pictures())


def test_nothing_gives_nothing(predict):
    assert predict([]) == predict(iter([])) == []


@pytest.mark.parametrize("images", [None, 3, {"a.png": 1}, {"a.png"}, b"bytes"])
def test_what_has_no_order_is_refused(predict, images):
    with pytest.raises(ValueError, match=f"images are {type(images).__name__}: expected a list"):
        predict(images)
