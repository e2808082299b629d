"""Check a backbone against the contract of ``crate_mm.models.Backbone``."""

import copy

import torch
from torch import Tensor, nn

from ..models.arch import Sizes
from ..models.backbone import Backbone, InputSpec, PatchKernel, Positions, check_backbone_contract
from .layer import check_layer, require


def check_backbone(backbone: Backbone, inputs: Tensor | None = None) -> None:
    """Check a backbone on random inputs. The backbone is not changed.

    Args:
        backbone: a small backbone.
        inputs: a batch of at least two samples (default: random inputs from ``input_spec``).

    Raises:
        AssertionError: the backbone violates the contract; the message says how.
    """
    name = type(backbone).__name__
    try:
        check_backbone_contract(backbone)
    except ValueError as error:
        raise AssertionError(str(error)) from None
    backbone = copy.deepcopy(backbone).double().eval()
    if inputs is None:
        inputs = _random_inputs(backbone, name)
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    with torch.no_grad():
        tokens = backbone(inputs)
        shape = tuple(tokens.shape)
        valid = tokens.ndim == 3 and shape[0] == len(inputs) and shape[2] == backbone.embed_dim
        require(valid, f"{name} must return (B, N, {backbone.embed_dim}) for {len(inputs)} samples, got {shape}")
        require(bool(tokens.isfinite().all()), f"{name} returns values that are not finite for random inputs")
        require(
            torch.equal(tokens, backbone(inputs)), f"{name} returns different values for the same inputs in eval mode"
        )
        alone = torch.cat([backbone(sample) for sample in inputs.split(1)])
        require(torch.allclose(tokens, alone, rtol=1e-9, atol=1e-9), f"{name} mixes the samples of a batch")
        backbone_copy = copy.deepcopy(backbone)
        backbone_copy.load_state_dict(backbone.state_dict())
        require(
            torch.equal(tokens, backbone_copy(inputs)),
            f"{name}: a copy with the same state dict returns different values",
        )
    _check_declarations(backbone, name, inputs)
    _check_layers(backbone, name, inputs)
    backbone.zero_grad()
    backbone(inputs).square().sum().backward()
    without = [n for n, p in backbone.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    require(not without, f"{name}: no gradient reaches {', '.join(without)}")
    with torch.no_grad():
        fused = backbone.fuse()(inputs)
    require(torch.allclose(tokens, fused, rtol=1e-9, atol=1e-9), f"{name}.fuse() changes the output")


def _random_inputs(backbone: Backbone, name: str) -> Tensor:
    spec = backbone.input_spec
    require(spec is not None, f"{name}.input_spec is None: give check_backbone a batch of inputs")
    generator = torch.Generator().manual_seed(0)
    if spec.dtype.is_floating_point:
        return torch.randn(3, *spec.shape, generator=generator)
    return torch.randint(0, 2, (3, *spec.shape), generator=generator, dtype=spec.dtype)


def _check_declarations(backbone: Backbone, name: str, inputs: Tensor) -> None:
    spec = backbone.input_spec
    if spec is not None:
        require(isinstance(spec, InputSpec), f"{name}.input_spec must be an InputSpec, got {spec!r}")
        valid = spec.any_size or tuple(inputs.shape[1:]) == spec.shape
        require(valid, f"{name}.input_spec says {spec.shape}, but inputs of {tuple(inputs.shape[1:])} were accepted")
    require(backbone.sizes is None or isinstance(backbone.sizes, Sizes), f"{name}.sizes must be Sizes or None")
    state = backbone.state_dict()
    parameters = dict(backbone.named_parameters())
    for part in backbone.stem:
        matches = any(f"{parameter}.".startswith(f"{part}.") for parameter in parameters)
        require(matches, f"{name}.stem names {part!r}, but no parameter name starts with it")
    for key, resizing in backbone.resizable().items():
        require(key in state, f"{name}.resizable() names {key!r}, which is not in the state dict")
        shape = tuple(state[key].shape)
        if isinstance(resizing, Positions):
            rows, columns = resizing.grid
            expected = (1, 1 + rows * columns, backbone.embed_dim)
            require(
                shape == expected,
                f"{name}.resizable(): {key} must be {expected} for a grid of {resizing.grid}, got {shape}",
            )
        else:
            require(isinstance(resizing, PatchKernel), f"{name}.resizable(): {key} must be Positions or a PatchKernel")
            elements = resizing.height * resizing.width * resizing.channels
            count = state[key].numel()
            require(
                count % elements == 0,
                f"{name}.resizable(): {key} has {count} elements, not a multiple of the {elements} of a patch",
            )


def _check_layers(backbone: Backbone, name: str, inputs: Tensor) -> None:
    layers, shapes, calls = backbone.layers, [], []

    def record(module: nn.Module, _inputs: tuple, z: Tensor) -> None:
        calls.append(module)
        shapes.append(z.shape)

    handles = [layer.register_forward_hook(record) for layer in layers]
    with torch.no_grad():
        backbone(inputs)
    for handle in handles:
        handle.remove()
    require(calls == layers, f"{name}.layers must be called once each, in this order")
    layout = backbone.layout(inputs)
    if layout is not None:
        expected = layout.prefix + layout.rows * layout.columns
        for number, shape in enumerate(shapes):
            require(
                shape[1] == expected,
                f"{name}.layout() says {layout.prefix} + {layout.rows} x {layout.columns} tokens, but layer {number} "
                f"returns {shape[1]}",
            )
    for layer in layers:
        check_layer(layer, backbone.embed_dim, layout)
