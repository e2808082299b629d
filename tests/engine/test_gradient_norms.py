"""The norm of the gradients by layer, in the logs."""

import pytest
import torch

from crate_mm.engine.optim.gradient_norms import layer_names
from crate_mm.models.layers import TSSA, Block
from tests.training import debug_runner, log_of, scalars_of


def test_the_layers_norms_are_those_of_their_gradients(tmp_path):
    runner = debug_runner(tmp_path, train_cfg__max_epochs=1, custom_hooks=[dict(type="GradientNorms", interval=5)])
    model, seen = runner.model, []
    names = layer_names(model)
    runner.build_for_training()
    step = runner.optim_wrapper.step

    def look(**kwargs):
        squares: dict[str, float] = {}
        for parameter in model.parameters():
            name = names[id(parameter)]
            squares[name] = squares.get(name, 0.0) + parameter.grad.double().square().sum().item()
        seen.append({f"grad_norm/{name}": square**0.5 for name, square in squares.items()})
        step(**kwargs)

    runner.optim_wrapper.step = look
    runner.train()
    rows = [row for row in scalars_of(tmp_path) if "grad_norm/head" in row]
    assert [row.pop("step") for row in rows] == [5, 10]
    for row, expected in zip(rows, seen[4::5], strict=True):
        assert row == pytest.approx(expected, rel=1e-5)
    layers = {f"grad_norm/backbone.blocks.{number}" for number in range(len(model.backbone.blocks))}
    assert rows[0].keys() == layers | {"grad_norm/backbone.embedding", "grad_norm/head"}
    assert "grad_norm/" not in log_of(tmp_path).split("hooks")[-1]


def test_an_optim_wrapper_that_does_not_measure_is_refused(tmp_path):
    runner = debug_runner(tmp_path, custom_hooks=[dict(type="GradientNorms")])
    runner.build_for_training()
    del runner.optim_wrapper.grad_norms
    with pytest.raises(ValueError, match="GradientNorms needs an OptimWrapper of crate_mm"):
        runner.train()


def test_every_parameter_has_a_layer():
    model = torch.nn.Module()
    model.blocks = torch.nn.ModuleList(Block(2, TSSA(2, 1), None) for _ in range(2))
    model.norm = torch.nn.LayerNorm(2)
    names = list(layer_names(model).values())
    assert names == ["blocks.0"] * 7 + ["blocks.1"] * 7 + ["norm"] * 2
