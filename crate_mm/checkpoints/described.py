"""Build a model from a checkpoint's config. The config is plain data: it names registered parts and runs no code.

The model is first built on the meta device and compared with the checkpoint's weights, which limit its size.
"""

import copy
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from ..io.untrusted import sanitized, walk
from ..models.tasks.base import Task, backbone_of
from ..registry import BACKBONES, HEADS, LAYERS, MODELS, TRANSFORMS, registered_only
from .fit import check_state_dict
from .unwrap import Checkpoint
from .validate import CheckpointError

# Place of a part in a model config -> its registry. Parts at other places may be in any of these registries.
REGISTRIES = {(): MODELS, ("backbone",): BACKBONES, ("head",): HEADS, ("preprocessor",): MODELS}
REGISTRIES |= {("backbone", "compress"): LAYERS, ("backbone", "sparsify"): LAYERS}
MAX_INTEGER = 2**20  # limit of any integer in a model config and of the sum of any list in it
MAX_TRANSFORMS = 32
MAX_SIDE = 8192  # limit of every number, such as a side in pixels, in a checkpoint's transforms
MAX_INPUT_PIXELS = 2**22  # input size of a checkpoint's model
MAX_OPERATIONS = 2**33  # multiply-adds per image of all transforms of a checkpoint: a few seconds
OTHER_OPERATIONS = 16  # approximate multiply-adds per pixel of a transform without a kernel, such as a resize
USUAL_PIXELS = 2**20  # a photograph before the first transform


class UnregisteredError(CheckpointError):
    """A checkpoint names a part that is not registered."""


def validated_model_config(checkpoint: Checkpoint) -> dict:
    """Return a checkpoint's model config after comparing it with the weights, before memory is allocated for it.

    Raises:
        CheckpointError: there is no model config, it names an unregistered part, it does not build, or it does not
            match the weights.
    """
    source = checkpoint.path
    size = compare_described(checkpoint)
    if math.prod(size) > MAX_INPUT_PIXELS:  # computed positions have no weights that limit the size
        raise CheckpointError(
            f"{source} describes a model of images of {' x '.join(map(str, size))} pixels, more than "
            f"{MAX_INPUT_PIXELS:,}: give a config"
        )
    return _with_own_weights(checkpoint.model)


def compare_described(checkpoint: Checkpoint) -> tuple[int, int]:
    """Build a checkpoint's model on the meta device and compare it with the weights.

    Returns:
        Height and width of the model's images, see ``image_size``.

    Raises:
        UnregisteredError: the config names an unregistered part.
        CheckpointError: there is no model config, it does not build, or it does not match the weights.
    """
    source, weights = checkpoint.path, checkpoint.weights
    if checkpoint.model is None:
        raise CheckpointError(f"{source} has no model config: {checkpoint.unknown_reason or 'give a config'}")
    check_description(checkpoint.model, source)
    try:
        with registered_only(), limit_model_size(weights), torch.device("meta"):
            model = MODELS.build(copy.deepcopy(checkpoint.model))
            expected, size = model.state_dict(), image_size(model)
    except _TooLargeError as error:
        raise CheckpointError(f"{source} describes a larger model than its weights can fill: {error}") from None
    except Exception as error:  # untrusted arguments can raise anything
        raise CheckpointError(
            f"{source} describes a model that does not build ({type(error).__name__}: {sanitized(error)}): "
            "give a config"
        ) from None
    check_state_dict(expected, weights, source, checkpoint.meta)
    return size


def build_from_checkpoint(checkpoint: Checkpoint) -> Task:
    """Build a checkpoint's model with new weights; see ``validated_model_config``."""
    config = validated_model_config(checkpoint)
    try:  # some invalid values raise only outside the meta device
        with registered_only():
            return MODELS.build(config)
    except Exception as error:
        raise CheckpointError(
            f"{checkpoint.path} describes a model that does not build: {sanitized(error)}: give a config"
        ) from None


def names_for(checkpoint: Checkpoint | None) -> AbstractContextManager:
    """Return the context in which the model of a config is built.

    A config is code and may name any class. If the config took its model from the checkpoint, the names in the model
    are untrusted data: only registered classes are built.
    """
    return registered_only() if checkpoint is not None and checkpoint.gives_model else nullcontext()


def image_size(model: nn.Module) -> tuple[int, int]:
    """Return height and width of a model's images in pixels, or (1, 1) if the model does not declare them."""
    backbone = backbone_of(model)
    spec = None if backbone is None else backbone.input_spec
    return spec.size if spec is not None and spec.is_image else (1, 1)


def _with_own_weights(config: Any) -> Any:
    """Copy a model config with ``pretrained=True`` switched off: the checkpoint itself holds the weights."""
    if isinstance(config, dict):
        return {
            key: False if key == "pretrained" and value is True else _with_own_weights(value)
            for key, value in config.items()
        }
    if isinstance(config, (list, tuple)):
        return type(config)(map(_with_own_weights, config))
    return config


def check_description(config: dict, source: str | Path) -> None:
    """Raise ``CheckpointError`` unless every ``type``, at any depth, names a registered part.

    MMEngine directives are refused as keys: ``_scope_``, for example, imports a module. Integers above ``MAX_INTEGER``
    are refused too: a large depth needs memory before the first layer is built and counted.
    """
    check_arguments(config, f"{source} describes its model with")
    registries = {id(registry): registry for registry in REGISTRIES.values()}.values()
    for registry in registries:
        registry.import_from_location()
    for place, value in walk(config):
        numbers = value if isinstance(value, (list, tuple)) else [value]
        if sum(abs(number) for number in numbers if isinstance(number, int)) > MAX_INTEGER:
            raise CheckpointError(
                f"{source} describes a model whose {sanitized('.'.join(place))} is more than {MAX_INTEGER:,}: "
                "give a config"
            )
        if not isinstance(value, dict):
            continue
        kind = value.get("type")
        allowed = [REGISTRIES[place]] if place in REGISTRIES else registries
        if "type" in value and not (isinstance(kind, str) and any(kind in r.module_dict for r in allowed)):
            raise UnregisteredError(
                f"{source} names the {sanitized('.'.join(place)) or 'model'} {sanitized(repr(kind))}, which is not "
                "registered: import the file that registers it first, or give a config"
            )


def check_arguments(config: Any, error_prefix: str) -> None:
    """Raise ``CheckpointError`` unless every key is an argument name and every value is safe in a config file.

    MMEngine imports what ``_scope_`` names, fills in ``{{...}}``, and writes other keys into a config's text unchanged.

    Args:
        config: dicts and lists at any depth.
        error_prefix: beginning of the error message.
    """
    for _, value in walk(config):
        if isinstance(value, dict):
            invalid = next((key for key in value if not key.isidentifier() or key.startswith("_")), None)
            if invalid is not None:
                raise CheckpointError(f"{error_prefix} {sanitized(invalid)!r}, which is not an argument name")
        elif (isinstance(value, str) and "{{" in value) or (isinstance(value, float) and not math.isfinite(value)):
            raise CheckpointError(f"{error_prefix} {sanitized(repr(value))}, which is not a plain value")


def check_transforms(transforms: list[dict], source: str | Path) -> None:
    """Raise ``CheckpointError`` unless a checkpoint's transforms are registered and their numbers are limited."""
    check_arguments(transforms, f"{source} was tested with transforms that have")
    if len(transforms) > MAX_TRANSFORMS:
        raise CheckpointError(f"{source} was tested with {len(transforms)} transforms: give transforms")
    TRANSFORMS.import_from_location()
    for _, value in walk(transforms):
        if isinstance(value, dict) and "type" in value:
            kind = value["type"]
            if not (isinstance(kind, str) and kind in TRANSFORMS.module_dict):
                raise CheckpointError(
                    f"{source} was tested with the transform {sanitized(repr(kind))}, which is not registered: "
                    "import the file that registers it first, or give transforms"
                )
        elif isinstance(value, (int, float)) and not abs(value) <= MAX_SIDE:
            raise CheckpointError(f"{source} was tested with transforms of size {value}: give transforms")
    if _num_operations(transforms) > MAX_OPERATIONS:
        raise CheckpointError(
            f"{source} was tested with transforms that take too long for an image, given their sizes and kernels: "
            "give transforms"
        )


def _num_operations(transforms: list[dict]) -> float:
    """Estimate the multiply-adds per image, from each kernel's size and the largest possible number of pixels."""
    pixels, operations = USUAL_PIXELS, 0.0

    def numbers(value: Any) -> list[float]:
        inner = value if isinstance(value, (list, tuple)) else [value]
        return [abs(number) for number in inner if isinstance(number, (int, float))]

    def add(value: Any) -> None:
        nonlocal pixels, operations
        for inner in value if isinstance(value, (list, tuple)) else ():
            add(inner)
        if not isinstance(value, dict):
            return
        sides = [side for key in ("size", "min_size", "max_size", "padding") for side in numbers(value.get(key))]
        pixels = min(max([pixels, *(side**2 for side in sides)]), MAX_SIDE**2)
        kernel = max([1, *numbers(value.get("kernel_size"))])
        if value.get("type") == "ElasticTransform":  # it blurs with a kernel of 8 sigma
            kernel = max([41, *(8 * sigma + 1 for sigma in numbers(value.get("sigma")))])
        times = math.prod(max([1, *numbers(value.get(key))]) for key in ("num_ops", "mixture_width", "chain_depth"))
        operations += times * (kernel**2 + OTHER_OPERATIONS) * pixels
        for inner in value.values():
            add(inner)

    add(transforms)
    return operations


class _TooLargeError(Exception):
    """The model has more modules or elements than a model of these weights can have."""


@contextmanager
def limit_model_size(weights: dict[str, Tensor]) -> Iterator[None]:
    """Raise an exception while a model is built if it is far larger than its weights.

    The limits allow for parts that a model builds and then deletes, and for modules and buffers without weights.
    """
    max_elements = 4 * sum(value.numel() for value in weights.values()) + 2**16
    max_tensors, max_modules = 4 * len(weights) + 64, 64 * len(weights) + 1024
    counts = {"elements": 0, "parameters": 0, "modules": 0}

    def count(unit: str, number: int, limit: int) -> None:
        counts[unit] += number
        if counts[unit] > limit:
            raise _TooLargeError(f"it has more than {limit:,} {unit}, the checkpoint has {len(weights):,} tensors")

    def count_tensor(_module: nn.Module, _name: str, value: Tensor | None) -> None:
        if value is not None:
            count("parameters", 1, max_tensors)
            count("elements", value.numel(), max_elements)

    def count_module(_module: nn.Module, _name: str, _value: nn.Module | None) -> None:
        count("modules", 1, max_modules)

    with ExitStack() as stack:
        for register, hook in (
            (hooks.register_module_parameter_registration_hook, count_tensor),
            (hooks.register_module_buffer_registration_hook, count_tensor),
            (hooks.register_module_module_registration_hook, count_module),
        ):
            stack.callback(register(hook).remove)
        yield
