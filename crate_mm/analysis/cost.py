"""Count parameters and multiply-adds of a model with fvcore. One multiply-add counts as one."""

import logging
import warnings
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # fvcore uses TorchScript on import
    from fvcore.nn import FlopCountAnalysis


class ModuleCost(NamedTuple):
    """Cost of one module and its submodules."""

    name: str
    kind: str
    parameters: int
    flops: int


class Complexity(NamedTuple):
    """Cost of one forward pass on one input.

    ``uncounted`` maps operators without a counting rule in fvcore to their number of calls. CRATE's uncounted operators
    are element-wise. For other models, they may include matrix products such as ``baddbmm``.
    """

    input_shape: tuple[int, ...]
    parameters: int
    flops: int
    modules: list[ModuleCost]
    by_operator: dict[str, int]
    uncounted: dict[str, int]


def count_complexity(model: nn.Module, example: Tensor | dict[str, Tensor], depth: int = 3) -> Complexity:
    """Count the parameters of a model and the multiply-adds of its forward pass.

    Matrix products count 1 per multiply-add and LayerNorm 5 per element (fvcore's rule). Element-wise operators and
    BatchNorm in eval mode count 0. If a model's arithmetic depends on the number of tokens, the count is for this
    input.

    Args:
        model: any module.
        example: one input tensor, or a batch such as ``Task.example`` returns. Its entries are passed in order.
        depth: depth of the table of modules, 1 for the model's children.
    """
    inputs = tuple(example.values()) if isinstance(example, dict) else (example,)
    was_training = model.training
    model.eval()
    fvcore_log = logging.getLogger("fvcore.nn.jit_analysis")
    level = fvcore_log.level
    fvcore_log.setLevel(logging.ERROR)
    # The fast path of torch.nn.MultiheadAttention is a single operator, which fvcore cannot count.
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            analysis = FlopCountAnalysis(model, inputs)
            analysis.set_op_handle("aten::scaled_dot_product_attention", _attention_flops)
            analysis.set_op_handle("aten::batch_norm", lambda *_: 0)  # element-wise in eval mode
            analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
            by_module = analysis.by_module()
            total, operators, uncounted = analysis.total(), analysis.by_operator(), analysis.unsupported_ops()
    finally:
        model.train(was_training)
        torch.backends.mha.set_fastpath_enabled(fast_path)
        fvcore_log.setLevel(level)
    modules = [
        ModuleCost(name, type(module).__name__, _parameters(module), int(by_module[name]))
        for name, module in model.named_modules()
        if name and name.count(".") < depth
    ]
    return Complexity(
        input_shape=tuple(inputs[0].shape),
        parameters=_parameters(model),
        flops=int(total),
        modules=[m for m in modules if m.parameters or m.flops],
        by_operator={name: int(flops) for name, flops in operators.items()},
        uncounted=dict(uncounted),
    )


def _attention_flops(inputs: list[Any], outputs: list[Any]) -> int:
    """Return the multiply-adds of softmax(q k^T) v for q ``(..., N, p)``, k ``(..., M, p)`` and v ``(..., M, e)``."""
    q, k, v = (i.type().sizes() for i in inputs[:3])
    return prod(q[:-1]) * k[-2] * (q[-1] + v[-1])


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
