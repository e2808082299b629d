"""The sizes that the README of the models tells: parameters and multiply-adds of every name, counted without memory."""

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
def test_a_row_is_the_models(name):
    with torch.device("meta"):
        model = get_model(name)
        width, depth, heads, parameters, giga = ROWS[name]
        cost = count_complexity(model, model.example())
    assert f"{cost.parameters:,}" == parameters
    assert f"{cost.flops / 1e9:.2f}" == giga
    assert (model.backbone.embed_dim, len(model.backbone.blocks)) == (int(width), int(depth))
    compress = model.backbone.blocks[0].compress
    assert compress.num_heads == int(heads)
