"""Every model is exported and traced, and the result takes batches of any size."""

import warnings

import pytest
import torch

from crate_mm import get_model
from crate_mm.models import ImageClassifier


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def small(name: str) -> ImageClassifier:
    return get_model(name, num_classes=5, img_size=32)


@pytest.mark.parametrize("name", ["crate_tiny", "vit_tiny"])
@pytest.mark.parametrize("dimension", [torch.export.Dim("batch", min=1, max=1024), torch.export.Dim.AUTO])
def test_an_exported_model_takes_any_batch(name, dimension):
    """Among them one at which a CRATE that is not exported takes its other form."""
    check_export(small(name), dimension)


def check_export(model, dimension):
    images = torch.randn(150, 3, 32, 32)
    assert 150 * 5 >= 2 * 192
    with torch.no_grad():
        exported = torch.export.export(model, (images[:2],), dynamic_shapes={"inputs": {0: dimension}}).module()
        for size in (1, 3, 150):
            torch.testing.assert_close(exported(images[:size]), model(images[:size]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["crate_tiny", "vit_tiny"])
def test_a_traced_model_takes_any_batch(name):
    model, images = small(name), torch.randn(150, 3, 32, 32)
    with torch.no_grad():
        traced = torch.jit.trace(model, images[:2])
        torch.testing.assert_close(traced(images), model(images), atol=1e-4, rtol=1e-4)


def test_a_fused_model_is_exported_too():
    model = small("crate_tiny")
    model.backbone.fuse()
    check_export(model, torch.export.Dim.AUTO)
