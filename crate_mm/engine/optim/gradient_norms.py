"""Log the gradient norm of each layer."""

from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from ...models.tasks.base import task_of
from ...registry import HOOKS
from ..parallel.blocks import layer_groups


def layer_names(model: nn.Module) -> dict[int, str]:
    """Return the layer name of each parameter, by ``id``: a block, or another part of the backbone or the model.

    Args:
        model: a task, or a backbone alone.
    """
    blocks = {id(block) for group in layer_groups(model) for block in group}
    names: dict[int, str] = {}
    for name, module in model.named_modules():
        if id(module) in blocks:
            names |= {id(parameter): name for parameter in module.parameters()}
    for name, parameter in model.named_parameters():
        depth = 2 if name.startswith("backbone.") else 1
        names.setdefault(id(parameter), ".".join(name.split(".")[:depth]))
    return names


@HOOKS.register_module()
class GradientNorms(Hook):
    """Log the Euclidean norm of each layer's gradients, before clipping, as ``grad_norm/LAYER``.

    The values go to the visualizer's backends (``scalars.json``, TensorBoard, ...), not to the text log.

    Args:
        interval: steps between two records.

    Raises:
        ValueError: (when training begins) the backbone has no layers, or the OptimWrapper is not one of crate_mm.
    """

    priority = "VERY_LOW"

    def __init__(self, interval: int = 50) -> None:
        self.interval = interval
        self.names: dict[int, str] = {}

    def before_train(self, runner: Runner) -> None:
        if not hasattr(runner.optim_wrapper, "grad_norms"):
            kind = type(runner.optim_wrapper).__name__
            raise ValueError(f"GradientNorms needs an OptimWrapper of crate_mm, got {kind}")
        self.names = layer_names(task_of(runner.model))

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        wrapper = runner.optim_wrapper
        if not self.every_n_train_iters(runner, self.interval) or wrapper.grad_norms is None:
            return
        squares = wrapper.grad_norms.double().square().tolist()
        by_layer: dict[str, float] = {}
        for parameter, square in zip(wrapper.grad_norm_params, squares):
            name = f"grad_norm/{self.names[id(parameter)]}"
            by_layer[name] = by_layer.get(name, 0.0) + square
        norms = {name: square**0.5 for name, square in by_layer.items()}
        runner.visualizer.add_scalars(norms, step=runner.iter + 1)
