"""Multiply-adds against a count by hand and against PyTorch's own counter."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from crate_mm import get_model
from crate_mm.analysis.cost import count_complexity
from crate_mm.registry import BACKBONES

LAYERNORM = 5  # what fvcore counts for an element
BACKBONES.names()  # registers them
SIZES = [family.sizes for family in BACKBONES.module_dict.values() if family.sizes is not None]


def test_tiny_by_hand():
    model = get_model("crate_tiny")
    report = count_complexity(model, torch.zeros(1, 3, 224, 224))
    N, d, L, patch, classes = 196, 384, 12, 768, 1000
    embedding = N * patch * d + LAYERNORM * N * (patch + d)
    T = N + 1
    mssa = 2 * T * d * d + 2 * T * T * d  # U and W_o; softmax(w w^T) w over all heads
    ista = 2 * T * d * d  # (x - x D^T) D, as there are fewer than 2 d tokens
    layer = mssa + ista + 2 * LAYERNORM * T * d
    head = LAYERNORM * d + d * classes
    assert report.flops == embedding + L * layer + head
    assert report.parameters == 6_090_856
    named = {module.name: module for module in report.modules}
    assert named["backbone.embedding"].flops == embedding
    assert named["backbone"].flops == embedding + L * layer
    assert named["head"].flops == head


@pytest.mark.slow
def test_many_tokens_take_the_one_product_form():
    model = get_model("crate_tiny", img_size=(448, 448)).train()
    report = count_complexity(model, torch.zeros(1, 3, 448, 448))
    T, d = 785, 384
    assert report.by_operator["matmul"] == 12 * d**3  # D^T D
    assert report.by_operator["linear"] == 784 * 768 * d + 12 * 3 * T * d * d + d * 1000
    assert model.training, "the model is left in its mode"


@pytest.mark.parametrize("name", [f"{sizes.prefix}_{next(iter(sizes.archs))}" for sizes in SIZES])
@pytest.mark.slow
def test_against_torchs_counter(name):
    model, image = get_model(name, num_classes=10, img_size=64), torch.zeros(1, 3, 64, 64)
    report = count_complexity(model, image)
    counter = FlopCounterMode(display=False)
    # With gradients and plain attention: else it is one operator, which PyTorch may not count.
    with counter, sdpa_kernel(SDPBackend.MATH):
        model(image)
    assert report.flops - report.by_operator["layer_norm"] == counter.get_total_flops() / 2
