"""Each layer against its equation, written out plainly, in float64."""

import pytest
import torch
from torch import nn

from crate_mm.models.layers import ISTA, MSSA, TokenEmbedding


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


# Few tokens (fewer than 2 d) take the two-product form, many the one-product form.
@pytest.mark.parametrize("tokens", [3, 400])
@pytest.mark.parametrize(("eta", "lambd"), [(0.1, 0.1), (0.5, 0.02)])
def test_ista_is_equation_17(tokens, eta, lambd):
    torch.manual_seed(0)
    ista = ISTA(24, step_size=eta, lambd=lambd).double()
    x, D = randn(2, tokens, 24), ista.dictionary
    expected = torch.relu(x + eta * (x @ D - x @ D.T @ D) - eta * lambd)
    torch.testing.assert_close(ista(x), expected, rtol=1e-12, atol=1e-12)
    grad = torch.randn_like(expected)
    ours = torch.autograd.grad(ista(x), (x, D), grad)
    plain = torch.autograd.grad(expected, (x, D), grad)
    torch.testing.assert_close(ours, plain, rtol=1e-11, atol=1e-11)


def test_ista_starts_kaiming_uniform_and_is_sparse():
    D, bound = ISTA(600).dictionary, (6 / 600) ** 0.5
    assert D.abs().max() <= bound
    torch.testing.assert_close(D.std(), torch.tensor(bound / 3**0.5), rtol=0.01, atol=0)
    z = ISTA(32)(torch.randn(4, 50, 32))
    assert (z >= 0).all()
    assert 0.2 < (z == 0).float().mean() < 0.8


@pytest.mark.parametrize("tokens", [3, 400])
def test_ista_keeps_the_identity_out_of_low_precision(tokens):
    ista, x = ISTA(24), torch.randn(2, tokens, 24)
    ista.dictionary.data.zero_()  # what is left is relu(x - eta lambda)
    with torch.autocast("cpu", torch.bfloat16):
        out = ista(x)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, torch.relu(x - 0.01))


@pytest.mark.parametrize(("heads", "head_dim"), [(3, None), (2, 5), (1, None)])
def test_mssa_is_subspace_attention(heads, head_dim):
    torch.manual_seed(0)
    mssa = MSSA(24, heads, head_dim).double()
    x = randn(2, 7, 24)
    p = head_dim or 24 // heads
    w = x @ mssa.proj.weight.T
    ssa = []
    for k in range(heads):
        w_k = w[..., k * p : (k + 1) * p]
        ssa.append(torch.softmax(w_k @ w_k.mT / p**0.5, dim=-1) @ w_k)
    expected = torch.cat(ssa, dim=-1)
    if heads > 1:
        expected = expected @ mssa.out.weight.T + mssa.out.bias
    torch.testing.assert_close(mssa(x), expected, rtol=1e-12, atol=1e-12)


def test_mssa_has_no_output_projection_for_one_head_of_full_width():
    assert isinstance(MSSA(24, 1).out, nn.Identity)
    assert isinstance(MSSA(24, 1, bias=False).out, nn.Identity)
    assert isinstance(MSSA(24, 1, head_dim=12).out, nn.Linear)
    assert MSSA(24, 2).out.bias is not None
    assert MSSA(24, 3, bias=False).out.bias is None
    assert MSSA(24, 2).proj.bias is None
    with pytest.raises(ValueError, match=r"24 is not divisible by num_heads 5: give head_dim"):
        MSSA(24, 5)


def test_patches_are_flattened_by_row_column_channel():
    embedding = TokenEmbedding((4, 6), (2, 3), in_channels=2, embed_dim=8)
    seen = []
    embedding.patch_norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    image = torch.arange(2 * 4 * 6.0).reshape(1, 2, 4, 6)
    tokens = embedding(image)
    assert tokens.shape == (1, 1 + 4, 8)
    # The second patch in reading order: rows 0-1, columns 3-5.
    expected = [image[0, c, i, j].item() for i in (0, 1) for j in (3, 4, 5) for c in (0, 1)]
    assert seen[0][0, 1].tolist() == expected


def test_cls_token_comes_first_and_positions_are_added():
    embedding = TokenEmbedding(4, 2, in_channels=1, embed_dim=8)
    tokens = embedding(torch.rand(3, 1, 4, 4))
    torch.testing.assert_close(tokens[:, 0], (embedding.cls_token[0] + embedding.pos_embed[0, :1]).expand(3, -1))
    assert embedding.pos_embed.shape == (1, 5, 8)
    embedding = TokenEmbedding(224, 16, in_channels=3, embed_dim=400)
    for value in (embedding.pos_embed, embedding.cls_token):
        assert abs(value.std().item() - 1) < 0.15


@pytest.mark.parametrize(("img_size", "patch_size"), [(10, 4), ((8, 10), 4), (8, 16)])
def test_patches_must_divide_the_image(img_size, patch_size):
    with pytest.raises(ValueError, match="not a whole number of patches"):
        TokenEmbedding(img_size, patch_size, 3, 8)


@pytest.mark.parametrize("shape", [(1, 3, 8, 9), (1, 1, 8, 8), (3, 8, 8)])
def test_an_image_of_another_size_is_refused(shape):
    with pytest.raises(ValueError, match=r"expected images of shape \(B, 3, 8, 8\), got"):
        TokenEmbedding(8, 4, 3, 8)(torch.rand(shape))


@pytest.mark.parametrize("num_tokens", [3, 200])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_a_fused_step_is_the_same_function(num_tokens, dtype, rtol):
    ista = ISTA(24).to(dtype).eval()
    x = torch.randn(2, num_tokens, 24, dtype=dtype)
    with torch.no_grad():
        plain = ista(x)
        ista.fuse()
        torch.testing.assert_close(ista(x), plain, rtol=rtol, atol=rtol)
    assert set(ista.state_dict()) == {"dictionary"}


def test_a_fused_step_refuses_to_train():
    ista = ISTA(24)
    ista.fuse()
    with pytest.raises(RuntimeError, match="a fused model is for inference only"), torch.no_grad():
        ista(torch.randn(2, 3, 24))
    ista.eval()
    with pytest.raises(RuntimeError, match="a fused model is for inference only"):
        ista(torch.randn(2, 3, 24))
