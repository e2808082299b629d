"""The measures against closed forms and against both Gram matrices."""

import math

import pytest
import torch

from crate_mm.analysis.measures import coding_rate, nonzero_fraction, subspace_coding_rate


def test_orthonormal_tokens_have_a_closed_form():
    N, d, eps2 = 5, 8, 0.04
    Z = torch.linalg.qr(torch.randn(d, N, dtype=torch.float64)).Q.T
    torch.testing.assert_close(coding_rate(Z, eps2).item(), N / 2 * math.log(1 + d / (N * eps2)))


def test_one_repeated_token_has_a_closed_form():
    Z = torch.zeros(6, 4, dtype=torch.float64)
    Z[:, 2] = 3.0
    torch.testing.assert_close(coding_rate(Z, 0.01).item(), 0.5 * math.log(1 + 4 / (6 * 0.01) * 6 * 9))
    assert coding_rate(torch.zeros(6, 4)) == 0


@pytest.mark.parametrize(("N", "d"), [(3, 9), (9, 3)])
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


def test_nonzero_fraction():
    Z = torch.tensor([[[0.0, 1.0], [0.0, 0.0], [2.0, -1.0]], [[0.0] * 2] * 3])
    assert nonzero_fraction(Z).tolist() == [0.5, 0.0]
