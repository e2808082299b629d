"""The textbook equations that the benchmarks compare with equal the operators, in float64, gradients included."""

import importlib

import pytest
import torch

from crate_mm.models.layers import ISTA, MLP, MSSA, TSSA, DecoderBlock, OvercompleteISTA, SoftmaxAttention
from tests.conftest import ROOT

OPERATORS = {
    "mssa": lambda: MSSA(24, 3),
    "softmax_attention": lambda: SoftmaxAttention(24, 3),
    "tssa": lambda: TSSA(24, 3),
    "ista": lambda: ISTA(24),
    "overcomplete_ista": lambda: OvercompleteISTA(24, 3, step_size=0.3, lambd=0.05),
    "mlp": lambda: MLP(24),
    "decoder_block": lambda: DecoderBlock(24, MSSA(24, 3)),
}


@pytest.fixture
def textbook(monkeypatch):
    """tools/benchmarks/textbook.py as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "tools" / "benchmarks"))
    return importlib.import_module("textbook")


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_is_its_equations(name, textbook):
    """Outputs and the gradients of input and parameters."""
    torch.manual_seed(0)
    operator, equations = OPERATORS[name]().double(), getattr(textbook, f"textbook_{name}")
    with torch.no_grad():
        for parameter in operator.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # so that zero biases and temperatures count
    results = []
    for form in (operator, lambda x: equations(operator, x)):
        x = torch.randn(2, 7, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
        out = form(x)
        (out * torch.arange(24).cos()).sum().backward()
        results.append([out.detach(), x.grad, *(p.grad.clone() for p in operator.parameters())])
        operator.zero_grad()
    for ours, written in zip(*results):
        torch.testing.assert_close(ours, written, rtol=1e-10, atol=1e-12)
        assert ours.any()


def test_without_a_second_dictionary_the_way_back_is_the_first(textbook):
    torch.manual_seed(0)
    step, x = OvercompleteISTA(12, ratio=3, decoupled=False).double(), torch.randn(2, 5, 12, dtype=torch.float64)
    torch.testing.assert_close(step(x), textbook.textbook_overcomplete_ista(step, x))
