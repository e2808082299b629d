"""Check a layer against the contract of ``crate_mm.models.Layer``."""

import copy

import torch
from torch import Tensor, nn

from ..models.layers import Layer, Subspaces, TokenLayout

INPUT = "the compression's input"  # key beside the names of the taps


def require(condition: bool, message: str) -> None:
    """Raise ``AssertionError`` with a message unless a condition holds."""
    if not condition:
        raise AssertionError(message)


def check_layer(layer: Layer, embed_dim: int, layout: TokenLayout | None = None) -> None:
    """Check a layer on random tokens. The layer is not changed.

    Args:
        layer: a layer in any mode, of any real dtype.
        embed_dim: dimension d of its tokens.
        layout: layout of the random tokens (default: one prefix token and 2 x 3 patches).

    Raises:
        AssertionError: the layer violates the contract; the message says how.
    """
    name = type(layer).__name__
    require(isinstance(layer, Layer), f"{name} is not a Layer: let it inherit from crate_mm.models.Layer")
    layout = layout or TokenLayout(1, 2, 3)
    layer = copy.deepcopy(layer).double().eval()
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(3, layout.prefix + layout.rows * layout.columns, embed_dim, generator=generator).double()
    with torch.no_grad():
        out, tap_outputs = _run_with_taps(layer, z, layout)
        require(out.shape == z.shape, f"{name} must keep the shape {tuple(z.shape)}, got {tuple(out.shape)}")
        require(bool(out.isfinite().all()), f"{name} returns values that are not finite for random tokens")
        again = layer(z, layout)
        require(torch.equal(out, again), f"{name} returns different values for the same tokens in eval mode")
        alone = torch.cat([layer(sample, layout) for sample in z.split(1)])
        require(torch.allclose(out, alone, rtol=1e-9, atol=1e-9), f"{name} mixes the samples of a batch")
        if layer.compress is not None and layer.compress.causal:
            cache: dict = {}
            parts = torch.cat([layer(part, cache=cache) for part in z.split(z.shape[1] // 2, 1)], 1)
            require(
                torch.allclose(out, parts, rtol=1e-9, atol=1e-9),
                f"{name}: {type(layer.compress).__name__}.causal is True, but tokens that are passed in parts, "
                "with a cache, give a different output than all tokens at once",
            )
    _check_readings(layer, name, tap_outputs, embed_dim, layout)
    _check_gradients(layer, name, z, layout)
    with torch.no_grad():
        layer.fuse()
        fused = layer(z, layout)
    require(torch.allclose(out, fused, rtol=1e-9, atol=1e-9), f"{name}.fuse() changes the output")


def _run_with_taps(layer: Layer, z: Tensor, layout: TokenLayout) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the output, and the outputs of the taps by name."""
    tap_outputs: dict[str, Tensor] = {}

    def hook(tap: str):
        return lambda _module, _inputs, out: tap_outputs.update({tap: out})

    handles = [module.register_forward_hook(hook(tap)) for tap, module in layer.taps().items()]
    if layer.compress is not None:
        handles.append(
            layer.compress.register_forward_pre_hook(lambda _module, args: tap_outputs.update({INPUT: args[0]}))
        )
    try:
        return layer(z, layout), tap_outputs
    finally:
        for handle in handles:
            handle.remove()


def _check_readings(layer: Layer, name: str, tap_outputs: dict[str, Tensor], d: int, layout: TokenLayout) -> None:
    taps = layer.taps()
    for tap in taps:
        require(tap in tap_outputs, f"{name} has {tap}, but forward does not call it")
    require("tap_out" in taps, f"{name} has no tap_out: end forward with self.tap_out(z), an nn.Identity")
    tokens = tap_outputs["tap_out"].shape[1]
    require("tap_w" in tap_outputs or not layer.subspaces(), f"{name} has subspaces, but no tap_w for x U")
    subspaces = layer.subspaces()
    if subspaces is not None:
        kind = type(subspaces).__name__
        require(isinstance(subspaces, Subspaces), f"{name}.subspaces() must return Subspaces(U, num_heads), not {kind}")
        U, K = subspaces
        require(U.ndim == 2 and U.shape[0] == d, f"{name}.subspaces().U must be (d, K p), got {tuple(U.shape)}")
        require(U.shape[1] % K == 0, f"{name}.subspaces(): {K} heads do not divide {U.shape[1]} columns")
        shape = (len(tap_outputs["tap_w"]), tokens, U.shape[1])
        require(
            tap_outputs["tap_w"].shape == shape,
            f"tap_w of {name} must pass x U of shape {shape}, got {tuple(tap_outputs['tap_w'].shape)}",
        )
        same = INPUT not in tap_outputs or torch.allclose(
            tap_outputs["tap_w"], tap_outputs[INPUT] @ U, rtol=1e-9, atol=1e-9
        )
        require(same, f"tap_w of {name} must pass x U for the U of subspaces(), whose columns are basis vectors")
    maps = layer.maps(tap_outputs["tap_w"], layout) if "tap_w" in tap_outputs else {}
    for key, (values, rows, columns) in maps.items():
        require(values.ndim == 4, f"{name}.maps()['{key}'] must be (B, K, rows, columns), got {tuple(values.shape)}")
        for kind, size in ((rows, values.shape[2]), (columns, values.shape[3])):
            require(
                kind != "tokens" or size == tokens,
                f"{name}.maps()['{key}'] says {kind} for a dimension of {size}, but there are {tokens} tokens",
            )
    if "attention" in maps:
        sums = maps["attention"].values.sum(-1)
        require(torch.allclose(sums, torch.ones_like(sums)), f"{name}: the rows of the map 'attention' must sum to 1")
    keys = layer.keys(tap_outputs["tap_w"]) if "tap_w" in tap_outputs else None
    require(
        keys is None or (keys.ndim == 3 and keys.shape[1] == tokens),
        f"{name}.keys() must be None or of shape (B, {tokens}, K p) for {tokens} tokens",
    )
    has_code = layer.sparsify is not None and layer.sparsify.has_code
    require(
        has_code == ("tap_code" in taps), f"{name}: a sparsification must have tap_code if and only if has_code is True"
    )
    require(has_code == (layer.lambd is not None), f"{name}: lambd must be a number if there is a code, else None")
    if layer.returns_code:
        same = torch.equal(tap_outputs["tap_code"], tap_outputs["tap_out"])
        require(same, f"{name}.returns_code is True, but its output is not the output of tap_code")


def _check_gradients(layer: nn.Module, name: str, z: Tensor, layout: TokenLayout) -> None:
    layer.zero_grad()
    z = z.clone().requires_grad_()
    layer(z, layout).square().sum().backward()
    require(z.grad is not None and bool(z.grad.any()), f"{name} passes no gradient to its input")
    without = [n for n, p in layer.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    require(not without, f"{name}: no gradient reaches {', '.join(without)}")
