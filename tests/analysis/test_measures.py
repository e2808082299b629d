"""The measures against closed forms, against both Gram matrices, and on degenerate tokens."""

import math

import pytest
import torch

from crate_mm.analysis.measures import (
    coding_rate,
    nonzero_fraction,
    rate_reduction,
    sparse_rate_reduction,
    subspace_coding_rate,
    subspace_gram,
    subspace_incoherence,
    subspace_snr,
)

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_orthonormal_tokens_have_a_closed_form(dtype, batch):
    N, d, eps2 = 5, 8, 0.04
    Z = torch.linalg.qr(torch.randn(*batch, d, N, dtype=torch.float64)).Q.mT.to(dtype)
    expected = torch.full(batch, N / 2 * math.log(1 + d / (N * eps2)), dtype=dtype)
    torch.testing.assert_close(coding_rate(Z, eps2), expected, rtol=TOLERANCE[dtype], atol=0)
    torch.testing.assert_close(coding_rate(3 * Z, eps2, unit_length=True), expected, rtol=TOLERANCE[dtype], atol=0)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_tokens_on_a_line_have_a_closed_form(dtype):
    N, d, eps2 = 6, 4, 0.01
    lengths = torch.tensor([3.0, 1.0, 0.0, 2.0, 0.5, 1.5], dtype=dtype)
    direction = torch.nn.functional.normalize(torch.tensor([1.0, 2.0, 2.0, 0.0], dtype=dtype), dim=0)
    Z = lengths[:, None] * direction
    expected = 0.5 * math.log(1 + d / (N * eps2) * lengths.square().sum().item())
    assert coding_rate(Z, eps2).item() == pytest.approx(expected, rel=TOLERANCE[dtype])
    unit = 0.5 * math.log(1 + d / (N * eps2) * 5)  # the zero token stays zero
    assert coding_rate(Z, eps2, unit_length=True).item() == pytest.approx(unit, rel=TOLERANCE[dtype])


@pytest.mark.parametrize(("N", "d"), [(3, 9), (9, 3), (4, 4)])
def test_both_gram_matrices_agree(N, d):
    Z = torch.randn(2, N, d, dtype=torch.float64)
    full = [torch.linalg.slogdet(torch.eye(len(G)) + d / (N * 0.01) * G)[1] / 2 for z in Z for G in (z @ z.T, z.T @ z)]
    expected = torch.stack(full).view(2, 2)
    torch.testing.assert_close(coding_rate(Z), expected[:, 0])
    torch.testing.assert_close(coding_rate(Z), expected[:, 1])


def test_subspace_rate_sums_over_heads():
    W = torch.randn(2, 7, 12, dtype=torch.float64)
    torch.testing.assert_close(subspace_coding_rate(W, 3), sum(coding_rate(W[..., k : k + 4]) for k in (0, 4, 8)))
    unit = subspace_coding_rate(W, 3, unit_length=True)
    torch.testing.assert_close(unit, subspace_coding_rate(5 * W, 3, unit_length=True))
    assert not torch.allclose(unit, subspace_coding_rate(W, 3))


def test_tokens_in_orthogonal_one_dimensional_subspaces():
    """One token a subspace: R^c = K/2 log(1 + 1/(N eps^2)), R = N/2 log(1 + d/(N eps^2))."""
    d, eps2 = 4, 0.25
    Z = U = torch.eye(d, dtype=torch.float64)
    rc, r = d / 2 * math.log(1 + 1 / (d * eps2)), d / 2 * math.log(1 + 1 / eps2)
    assert subspace_coding_rate(Z @ U, 4, eps2).item() == pytest.approx(rc)
    assert rate_reduction(Z, U, 4, eps2).item() == pytest.approx(r - rc)
    assert sparse_rate_reduction(Z, U, 4, 0.1, eps2).item() == pytest.approx(r - rc - 0.1 * 4)
    assert subspace_incoherence(U, 4) == 0


def test_incoherence_and_gram():
    U = torch.randn(2000, 6, dtype=torch.float64)
    cosine = torch.tensor([[torch.cosine_similarity(a, b, dim=0) for b in U.T] for a in U.T])
    torch.testing.assert_close(subspace_gram(U), cosine)
    torch.testing.assert_close(subspace_gram(U, normalize=False), U.T @ U)
    between = [cosine[i, j].abs() for i in range(6) for j in range(6) if i // 2 != j // 2]
    assert subspace_incoherence(U, 3).item() == pytest.approx(torch.stack(between).mean().item())
    same = torch.ones(5, 6)
    assert subspace_incoherence(same, 2).item() == pytest.approx(1)
    random = subspace_incoherence(torch.randn(400, 64), 8).item()
    assert random == pytest.approx(math.sqrt(2 / (math.pi * 400)), rel=0.1)
    for heads in (1, 4):
        with pytest.raises(ValueError, match=f"at least two heads that divide 6 basis vectors, got {heads}"):
            subspace_incoherence(U, heads)


@pytest.mark.parametrize(("shape", "unit_length"), [((2, 5, 6), True), ((7, 4), False)])
def test_gradients(shape, unit_length):
    Z = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    U = torch.randn(shape[-1], 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: coding_rate(z, 0.5, unit_length), Z)
    assert torch.autograd.gradcheck(lambda z, u: subspace_coding_rate(z @ u, 2, 0.5, unit_length), (Z, U))
    assert torch.autograd.gradcheck(lambda z, u: sparse_rate_reduction(z, u, 2, 0.1, 0.5, unit_length), (Z, U))


@pytest.mark.parametrize("unit_length", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 8), (3, 64), (9, 1), (2, 1, 1)])
def test_degenerate_tokens_give_finite_rates(shape, dtype, unit_length):
    U = torch.randn(shape[-1], 4).to(dtype)
    for Z in (torch.randn(shape).to(dtype), torch.zeros(shape, dtype=dtype), torch.ones(shape, dtype=dtype)):
        for value in (
            coding_rate(Z, unit_length=unit_length),
            subspace_coding_rate((Z.float() @ U.float()).to(dtype), 2, unit_length=unit_length),
            rate_reduction(Z, U, 2, unit_length=unit_length),
            sparse_rate_reduction(Z, U, 2, unit_length=unit_length),
        ):
            assert value.shape == shape[:-2]
            assert value.isfinite().all()
            assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert coding_rate(torch.zeros(shape, dtype=dtype)).abs().max() == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: coding_rate(torch.zeros(4)), r"expected floating-point tokens of shape \(..., N, d\)"),
        (lambda: coding_rate(torch.zeros(0, 4)), "got torch.float32 of"),
        (lambda: coding_rate(torch.zeros(3, 4, dtype=torch.long)), "got torch.int64 of"),
        (lambda: coding_rate(torch.full((3, 4), torch.nan)), "the coding rate is not finite"),
        (lambda: coding_rate(torch.zeros(3, 4), 0.0), "eps_squared must be positive, got 0.0"),
        (
            lambda: subspace_coding_rate(torch.zeros(3, 4), 3),
            r"3 heads do not divide projected tokens of shape \(3, 4\)",
        ),
    ],
)
def test_bad_input_is_told(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_nonzero_fraction():
    Z = torch.tensor([[[0.0, 1.0], [0.0, 0.0], [2.0, -1.0]], [[0.0] * 2] * 3])
    assert nonzero_fraction(Z).tolist() == [0.5, 0.0]


def test_signal_to_noise_ratio_of_the_subspaces():
    """Three tokens of subspace 0, one of subspace 1, none of subspace 2; the bases need not be orthonormal."""
    axes = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    U = torch.cat([part @ torch.randn(2, 2, dtype=torch.float64) for part in axes.split(2, dim=1)], dim=1)
    Z = torch.tensor([[3.0, 0, 1, 0, 0, 0], [0, 2, 0, 0, 0, -1], [1, 1, 0, 1, 0, 0], [0, 0, 0, 4, 2, 0]]).double()
    expected = torch.tensor([(15 / 3) ** 0.5, 2, math.nan], dtype=torch.float64)
    tokens = torch.stack([Z, 7 * Z]) @ axes.T
    torch.testing.assert_close(subspace_snr(tokens, U, 3), expected.expand(2, -1), equal_nan=True)
    assert subspace_snr(tokens.float(), U, 3).dtype == torch.float32
    with pytest.raises(ValueError, match="4 heads do not divide 6 basis vectors"):
        subspace_snr(Z, U, 4)
