"""MMEngine's ``paramwise_cfg`` with checks, few parameter groups, and layer-wise learning-rate decay."""

import inspect
import math

from mmengine.optim import DefaultOptimWrapperConstructor as _Constructor
from mmengine.optim import OptimWrapper
from torch import nn

from ...config.settings import PARAMWISE_KEYS
from ...io.log import print_log
from ...models.tasks.base import backbone_of, freeze_untrained, task_of
from ...registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIMIZERS, suggest

WHERE = "optim_wrapper.paramwise_cfg"


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class DefaultOptimWrapperConstructor(_Constructor):
    """MMEngine's constructor with checks and fewer parameter groups.

    Unknown rules, and keys that match no parameter, raise an error. Parameters with equal settings share one group
    (MMEngine: one group per parameter), because optimizers update a group's parameters together. Each group has the
    full names of its parameters under ``names``; a resume compares these names.

    A key of ``custom_keys`` matches every parameter whose full name contains it; the longest matching key applies. The
    other rules apply to the remaining parameters: ``norm_decay_mult`` to normalization layers, ``bias_decay_mult`` to
    other biases, ``flat_decay_mult`` to other parameters with one dimension.

    ``layer_decay``, which MMEngine does not have, is for fine-tuning: a factor ``g`` in (0, 1] by which the learning
    rate decreases from layer to layer towards the input (Clark et al., ICLR 2020; Bao et al., ICLR 2022). With ``L``
    layers, the learning rate is multiplied by ``g ** (L + 1 - l)`` in layer ``l`` (from 1), by ``g ** (L + 1)`` in the
    backbone's ``stem``, and by 1 after the last layer, head included. The factors of other rules apply in addition.

    Args:
        optim_wrapper_cfg, paramwise_cfg: as for MMEngine's constructor.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        if paramwise_cfg:
            check_paramwise_cfg(paramwise_cfg, optim_wrapper_cfg["optimizer"])
        super().__init__(optim_wrapper_cfg, paramwise_cfg)

    def __call__(self, model: nn.Module) -> OptimWrapper:
        task = task_of(model)
        freeze_untrained(task)  # with paramwise_cfg, MMEngine leaves out parameters without requires_grad
        check_custom_keys(self.paramwise_cfg.get("custom_keys", {}), task)
        return super().__call__(task if self.paramwise_cfg else task.trainable())

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = "", **kwargs) -> None:
        if prefix:
            super().add_params(params, module, prefix, **kwargs)
            return
        single_groups: list[dict] = []  # one parameter each
        super().add_params(single_groups, module, prefix, **kwargs)
        decay = self.paramwise_cfg.get("layer_decay") or 1
        if decay != 1:
            layers, last_index = layer_indices(module)
            for single in single_groups:
                (parameter,) = single["params"]
                depth = last_index - layers.get(id(parameter), last_index)
                single["lr"] = single.get("lr", self.base_lr) * decay**depth
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        base = {
            key: self.optimizer_cfg[key] for key in ("lr", "weight_decay") if self.optimizer_cfg.get(key) is not None
        }
        groups: dict[str, dict] = {}
        for single in single_groups:
            settings = {k: v for k, v in single.items() if k not in ("params", "lr_mult", "decay_mult")}
            settings = {**base, **settings}
            group = groups.setdefault(repr(sorted(settings.items())), {"params": [], "names": [], **settings})
            group["params"] += single["params"]
            group["names"] += [names[id(parameter)] for parameter in single["params"]]
        # Groups with the base learning rate come first: logs show the learning rate of the first group.
        params += sorted(groups.values(), key=lambda group: group.get("lr") != base.get("lr"))
        for group in params:
            settings = ", ".join(f"{key} {value}" for key, value in group.items() if key not in ("params", "names"))
            print_log(f"{len(group['names'])} parameters have {settings}: {group['names'][0]}, ...", "current")


def layer_indices(model: nn.Module) -> tuple[dict[int, int], int]:
    """Return the layer index of each parameter up to the last layer, by ``id``, and the index after the last layer.

    The backbone's ``stem`` (everything before the first layer) has index 0; the first layer has index 1.

    Raises:
        ValueError: the backbone has no layers or no ``stem``.
    """
    backbone = backbone_of(model)
    name = type(model if backbone is None else backbone).__name__
    if backbone is None or not backbone.layers:
        raise ValueError(f"{WHERE}.layer_decay: {name} has no layers: they must inherit from crate_mm.models.Layer")
    if not backbone.stem:
        raise ValueError(
            f"{WHERE}.layer_decay: {name} has no stem: set it to the names of the modules and parameters before the "
            "first layer"
        )
    layers = {}
    for number, layer in enumerate(backbone.layers, 1):
        layers |= {id(parameter): number for parameter in layer.parameters()}
    before = [f"{name}." for name in backbone.stem]
    for name, parameter in backbone.named_parameters():
        if f"{name}.".startswith(tuple(before)):
            layers[id(parameter)] = 0
    return layers, len(backbone.layers) + 1


def check_paramwise_cfg(rules: dict, optimizer: dict) -> None:
    """Raise ``ValueError`` for an unknown or invalid rule, or a multiplier of a setting that is not set.

    Args:
        rules: a config's ``paramwise_cfg``.
        optimizer: the config's optimizer.
    """
    if not isinstance(rules, dict):
        raise ValueError(f"{WHERE} must be a dict, got {rules!r}")
    unknown = next((name for name in rules if name not in PARAMWISE_KEYS), None)
    if unknown is not None:
        raise ValueError(f"{WHERE} has no {unknown!r}: {suggest(unknown, list(PARAMWISE_KEYS))}")
    decay = rules.get("layer_decay")
    number = isinstance(decay, (int, float)) and not isinstance(decay, bool)
    if decay is not None and not (number and 0 < decay <= 1 and math.isfinite(decay)):
        raise ValueError(f"{WHERE}.layer_decay must be a number above 0 and at most 1, such as 0.75, got {decay!r}")
    if decay is not None and optimizer.get("lr") is None:
        raise ValueError(f"{WHERE}.layer_decay multiplies optim_wrapper.optimizer.lr, which is not set")
    settings = {*inspect.signature(OPTIMIZERS.get(optimizer["type"])).parameters, "lr_mult", "decay_mult"}
    keys = rules.get("custom_keys", {})
    for key, rule in keys.items() if isinstance(keys, dict) else [("custom_keys", keys)]:
        if not isinstance(rule, dict):
            raise ValueError(f"{WHERE}: {key!r} must be a dict such as dict(decay_mult=0.0), got {rule!r}")
        unknown = next((name for name in rule if name not in settings), None)
        if unknown is not None:
            raise ValueError(f"{WHERE}.custom_keys: {key!r} sets {unknown!r}: {suggest(unknown, sorted(settings))}")
    factors = [item for rule in (rules, *keys.values()) for item in rule.items() if item[0].endswith("_mult")]
    for name, factor in factors:
        if not isinstance(factor, (int, float)) or isinstance(factor, bool) or not factor >= 0:
            raise ValueError(f"{WHERE}: {name} must be a number of at least 0, got {factor!r}")
        multiplied = "weight_decay" if name.endswith("decay_mult") else "lr"
        if optimizer.get(multiplied) is None:
            raise ValueError(f"{WHERE}: {name} multiplies optim_wrapper.optimizer.{multiplied}, which is not set")


def check_custom_keys(keys: dict, model: nn.Module) -> None:
    """Raise ``ValueError`` for a key of ``custom_keys`` that applies to no parameter of the model."""
    # MMEngine's name matching. Frozen parameters count, because a recipe may also serve a linear probe.
    names = [name if "." in name else f".{name}" for name, _ in model.named_parameters()]
    longest_first = sorted(sorted(keys), key=len, reverse=True)
    governing = {next((key for key in longest_first if key in name), None) for name in names}
    for key in keys:
        if not any(key in name for name in names):
            known = sorted({part for name in names for part in (name, *name.split(".")) if not part.isdigit()})
            raise ValueError(
                f"{WHERE}.custom_keys: no parameter's name contains {key!r}: {suggest(key, known)} (a name is "
                f"{names[-1]})"
            )
        if key not in governing:
            raise ValueError(f"{WHERE}.custom_keys: {key!r} has no effect: longer keys match all of its parameters")
