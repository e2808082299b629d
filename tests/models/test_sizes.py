"""The sizes that the README of the models tells: parameters and multiply-adds."""

import re

import pytest
import torch

from crate_mm import get_model, list_models
from crate_mm.analysis.cost import count_complexity
from tests.conftest import ROOT

ROW = r"^\| `(\w+)` \| (\d+), (\d+), (\d+) \| ([\d,]+) \| ([\d.]+) \|$"
ROWS = {name: told for name, *told in re.findall(ROW, (ROOT / "crate_mm/models/README.md").read_text(), re.MULTILINE)}


def test_every_name_is_in_the_table():
    assert list(ROWS) == list_models()


@pytest.mark.parametrize("name", list_models())
def test_a_rows_parameters_are_the_models(name):
    width, depth, heads, parameters, _ = ROWS[name]
    with torch.device("meta"):
        model = get_model(name)
    assert f"{sum(p.numel() for p in model.parameters()):,}" == parameters
    assert (model.backbone.embed_dim, len(model.backbone.blocks)) == (int(width), int(depth))
    assert model.backbone.blocks[0].compress.num_heads == int(heads)


@pytest.mark.parametrize(
    "name", ["crate_seg_tiny", "crate_mae_tiny", "crate_alpha_tiny", "tost_tiny_12", "vit_tiny", "cbt_tiny", "aot_tiny"]
)
@pytest.mark.slow
def test_a_rows_multiply_adds_are_counted(name):
    """Of each family's smallest: the rest was counted likewise."""
    model = get_model(name)
    assert f"{count_complexity(model, model.example()).flops / 1e9:.2f}" == ROWS[name][-1]
