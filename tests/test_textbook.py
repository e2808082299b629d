"""The equations that the benchmarks measure against are the operators' own, in float64; and the benchmark's parts."""

import sys

import pytest
import torch

from tests.conftest import ROOT


@pytest.fixture(scope="module")
def benchmark():
    """tools/benchmarks/operators.py, as a module."""
    sys.path.insert(0, str(ROOT / "tools" / "benchmarks"))
    try:
        import operators

        yield operators
    finally:
        sys.path.remove(str(ROOT / "tools" / "benchmarks"))


NAMES = ["MSSA", "softmax attention", "TSSA", "ISTA", "overcomplete ISTA", "MLP", "decoder layer"]


@pytest.mark.parametrize("name", NAMES)
def test_an_operator_is_its_equations(name, benchmark):
    """Outputs and the gradients of input and parameters."""
    torch.manual_seed(0)
    found = benchmark.operators(24, 3)
    assert list(found) == NAMES
    operator, equations = found[name]
    operator.double()
    with torch.no_grad():
        for parameter in operator.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # biases and temperatures that say something
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


def test_without_a_second_dictionary_the_way_back_is_the_first(benchmark):
    from crate_mm.models.layers import OvercompleteISTA

    torch.manual_seed(0)
    step, x = OvercompleteISTA(12, ratio=3, decoupled=False).double(), torch.randn(2, 5, 12, dtype=torch.float64)
    torch.testing.assert_close(step(x), benchmark.textbook.textbook_overcomplete_ista(step, x))


def test_a_layer_of_the_benchmark_is_the_familys(benchmark):
    """The same steps and parameters as a layer of the family itself has."""
    from crate_mm.registry import BACKBONES

    arch = dict(embed_dim=48, depth=1, num_heads=3)
    for name, kind in {"CRATE": "CRATE", "CRATE-alpha": "CRATEAlpha", "ToST": "ToST"}.items():
        theirs = BACKBONES.build(dict(type=kind, arch=arch, img_size=32)).blocks[0]
        ours = benchmark.build_block(48, 3, **benchmark.LAYERS[name])
        assert repr(ours) == repr(theirs)
        assert ours.residual == theirs.residual
        ours.load_state_dict(theirs.state_dict())
    vit = BACKBONES.build(dict(type="ViT", arch=arch, img_size=32)).blocks[0]
    ours = benchmark.build_block(48, 3, **benchmark.LAYERS["ViT"])
    assert sorted(p.shape for p in ours.parameters()) == sorted(p.shape for p in vit.parameters())


def test_peak_memory_sees_what_a_form_takes(benchmark):
    import machine

    peak = machine.peak_resident_mb(lambda: torch.ones(2**24))  # 67 MB
    if peak is None:
        pytest.skip("this system does not tell a process's peak memory")
    assert 60 < peak < 90
    assert machine.peak_resident_mb(lambda: None) is None
