"""A model built from what a file says of itself: data, which names registered parts and can import or run nothing.

The file's weights bound the model: it is first built without memory, and compared with them.
"""

import copy
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from ..io.untrusted import sanitized
from ..models.tasks.base import backbone_of
from ..registry import BACKBONES, HEADS, LAYERS, MODELS, TRANSFORMS, registered_only
from .fit import check_state_dict
from .unwrap import Checkpoint
from .validate import CheckpointError

# Where a part of our own models must be registered; parts within parts may be in any of them.
PLACES = {(): MODELS, ("backbone",): BACKBONES, ("head",): HEADS, ("preprocessor",): MODELS}
PLACES |= {("backbone", "compress"): LAYERS, ("backbone", "sparsify"): LAYERS}
MOST_NUMBER = 2**20  # any whole number of a model, and the sum of a list of them: parts list their layers by depth
MOST_TRANSFORMS = 32
MOST_SIDE = 8192  # pixels, or any other number, in transforms that a file names
MOST_INPUT = 2**22  # pixels of an image of a model that a file describes
MOST_WORK = 2**33  # products of a kernel's numbers with pixels, in all transforms that a file names: some seconds
OTHER_WORK = 16  # products a pixel, about, of what is no kernel: a resize, a change of colours
USUAL_INPUT = 2**20  # pixels of a photograph before the first transform


class UnregisteredError(CheckpointError):
    """A file names a part that is not registered here, so that it is not known what it is."""


def validated_model_config(checkpoint: Checkpoint) -> dict:
    """The model that a checkpoint describes, a config of registered parts, compared with its weights before any memory
    is taken for it.

    Raises:
        CheckpointError: it describes none, one with a part that is not registered here, one that does not build, or
            another one than the weights are of.
    """
    source = checkpoint.path
    size = compare_described(checkpoint)
    if math.prod(size) > MOST_INPUT:  # which no weight bounds where positions are computed
        raise CheckpointError(
            f"{source} describes a model of images of {' x '.join(map(str, size))} pixels, more than {MOST_INPUT:,}: "
            "give a config"
        )
    return _with_own_weights(checkpoint.model)


def compare_described(checkpoint: Checkpoint) -> tuple[int, int]:
    """Compare the model that a checkpoint describes, which is built without memory, with its weights.

    Returns:
        Height and width of the model's images, see ``image_size``.

    Raises:
        UnregisteredError: it has a part that is not registered here.
        CheckpointError: it describes none, one that does not build, or another one than the weights are of.
    """
    source, weights = checkpoint.path, checkpoint.weights
    if checkpoint.model is None:
        raise CheckpointError(f"{source} does not say what model it is of: {checkpoint.unknown or 'give a config'}")
    check_description(checkpoint.model, source)
    try:
        with registered_only(), limit_model_size(weights), torch.device("meta"):
            model = MODELS.build(copy.deepcopy(checkpoint.model))
            expected, size = model.state_dict(), image_size(model)
    except _TooLargeError as error:
        raise CheckpointError(f"{source} describes a larger model than its weights are of: {error}") from None
    except Exception as error:  # a part can fail in any way, given arguments of any kind
        raise CheckpointError(
            f"{source} describes a model that does not build ({type(error).__name__}: {sanitized(error)}): give a config"
        ) from None
    check_state_dict(expected, weights, source, checkpoint.meta)
    return size


def build_from_checkpoint(checkpoint: Checkpoint) -> nn.Module:
    """Build the model that a checkpoint describes, with new weights; raise ``CheckpointError`` as ``validated_model_config``."""
    described = validated_model_config(checkpoint)
    try:  # numbers that have no place in memory are met only now
        with registered_only():
            return MODELS.build(described)
    except Exception as error:
        raise CheckpointError(
            f"{checkpoint.path} describes a model that does not build: {sanitized(error)}: give a config"
        ) from None


def image_size(model: nn.Module) -> tuple[int, int]:
    """Return height and width of the images that a model is built for, in pixels; 1 x 1 where it does not say."""
    backbone = backbone_of(model)
    spec = None if backbone is None else backbone.input_spec
    return spec.size if spec is not None and spec.is_image else (1, 1)


def _with_own_weights(described: Any) -> Any:
    """Copy a file's model config with every ``pretrained=True`` switched off: the file itself holds the weights."""
    if isinstance(described, dict):
        return {
            key: False if key == "pretrained" and value is True else _with_own_weights(value)
            for key, value in described.items()
        }
    if isinstance(described, (list, tuple)):
        return type(described)(map(_with_own_weights, described))
    return described


def check_description(described: dict, source: str | Path) -> None:
    """Raise ``CheckpointError`` unless every ``type``, at every depth, is the name of a part that is registered here.

    Keys that give MMEngine instructions, such as ``_scope_``, which imports a module, are refused. So are whole numbers
    beyond ``MOST_NUMBER``: a depth may be spent on a list of rates before a first layer is built, and counted.
    """
    check_arguments(described, f"{source} describes its model with")
    registries = {id(registry): registry for registry in PLACES.values()}.values()
    for registry in registries:
        registry.import_from_location()
    left: list[tuple[tuple[str, ...], Any]] = [((), described)]
    while left:
        place, value = left.pop()
        if isinstance(value, (list, tuple)):
            left.extend((place, inner) for inner in value)
        numbers = value if isinstance(value, (list, tuple)) else [value]
        if sum(abs(number) for number in numbers if isinstance(number, int)) > MOST_NUMBER:
            raise CheckpointError(
                f"{source} describes a model whose {sanitized('.'.join(place))} is more than {MOST_NUMBER:,}: give a config"
            )
        if not isinstance(value, dict):
            continue
        left.extend(((*place, key), inner) for key, inner in value.items())
        kind = value.get("type")
        allowed = [PLACES[place]] if place in PLACES else registries
        if "type" in value and not (isinstance(kind, str) and any(kind in r.module_dict for r in allowed)):
            raise UnregisteredError(
                f"{source} names the {sanitized('.'.join(place)) or 'model'} {sanitized(repr(kind))}, which is not registered "
                "here: import the file that registers it first, or give a config"
            )


def check_arguments(described: Any, wrong: str) -> None:
    """Raise ``CheckpointError`` unless all keys of what a file describes are names of arguments, and all values plain
    as they stand in a config: MMEngine takes ``_scope_`` for an instruction to import, fills in ``{{...}}``, and writes
    other keys into a config's text as they are.

    Args:
        described: dicts and lists at any depth.
        wrong: the beginning of the sentence.
    """
    left: list[Any] = [described]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            odd = next((key for key in value if not key.isidentifier() or key.startswith("_")), None)
            if odd is not None:
                raise CheckpointError(f"{wrong} {sanitized(odd)!r}, which is no argument of a part")
            left += value.values()
        elif isinstance(value, (list, tuple)):
            left += value
        elif (isinstance(value, str) and "{{" in value) or (isinstance(value, float) and not math.isfinite(value)):
            raise CheckpointError(f"{wrong} {sanitized(repr(value))}, which is no plain value")


def check_transforms(transforms: list[dict], source: str | Path) -> None:
    """Raise ``CheckpointError`` unless all transforms that a file names are registered here, with bounded numbers."""
    check_arguments(transforms, f"{source} was tested with transforms that have")
    if len(transforms) > MOST_TRANSFORMS:
        raise CheckpointError(f"{source} was tested with {len(transforms)} transforms: give transforms")
    TRANSFORMS.import_from_location()
    left: list[Any] = list(transforms)
    while left:
        value = left.pop()
        if isinstance(value, dict):
            kind = value.get("type")
            if "type" in value and not (isinstance(kind, str) and kind in TRANSFORMS.module_dict):
                raise CheckpointError(
                    f"{source} was tested with the transform {sanitized(repr(kind))}, which is not registered here: import "
                    "the file that registers it first, or give transforms"
                )
            left += value.values()
        elif isinstance(value, (list, tuple)):
            left += value
        elif isinstance(value, (int, float)) and not abs(value) <= MOST_SIDE:
            raise CheckpointError(f"{source} was tested with transforms of size {value}: give transforms")
    if _work(transforms) > MOST_WORK:
        raise CheckpointError(
            f"{source} was tested with transforms that take too long for an image, by their sizes and kernels "
            "together: give transforms"
        )


def _work(transforms: list[dict]) -> float:
    """About how many products an image takes: of a kernel's numbers with the most pixels that there may be by then."""
    pixels, work = USUAL_INPUT, 0.0

    def numbers(value: Any) -> list[float]:
        inner = value if isinstance(value, (list, tuple)) else [value]
        return [abs(number) for number in inner if isinstance(number, (int, float))]

    def add(value: Any) -> None:
        nonlocal pixels, work
        for inner in value if isinstance(value, (list, tuple)) else ():
            add(inner)
        if not isinstance(value, dict):
            return
        sides = [side for key in ("size", "min_size", "max_size", "padding") for side in numbers(value.get(key))]
        pixels = min(max([pixels, *(side**2 for side in sides)]), MOST_SIDE**2)
        kernel = max([1, *numbers(value.get("kernel_size"))])
        if value.get("type") == "ElasticTransform":  # which blurs, by a kernel of eight times its sigma
            kernel = max([41, *(8 * sigma + 1 for sigma in numbers(value.get("sigma")))])
        times = math.prod(max([1, *numbers(value.get(key))]) for key in ("num_ops", "mixture_width", "chain_depth"))
        work += times * (kernel**2 + OTHER_WORK) * pixels
        for inner in value.values():
            add(inner)

    add(transforms)
    return work


class _TooLargeError(Exception):
    """More modules or numbers than the weights of a file can be of."""


@contextmanager
def limit_model_size(weights: dict[str, Tensor]) -> Iterator[None]:
    """Stop the building of a model, by an exception, when it is far larger than its weights.

    Some room is left for parts that a model builds and then takes away, and for modules and buffers without weights.
    """
    numbers = 4 * sum(value.numel() for value in weights.values()) + 2**16
    tensors, modules = 4 * len(weights) + 64, 64 * len(weights) + 1024
    counted = {"numbers": 0, "parameters": 0, "modules": 0}

    def count(what: str, how_many: int, most: int) -> None:
        counted[what] += how_many
        if counted[what] > most:
            raise _TooLargeError(f"it has more than {most:,} {what}, they are {len(weights):,} tensors")

    def tensor(_module: nn.Module, _name: str, value: Tensor | None) -> None:
        if value is not None:
            count("parameters", 1, tensors)
            count("numbers", value.numel(), numbers)

    def module(_module: nn.Module, _name: str, _value: nn.Module | None) -> None:
        count("modules", 1, modules)

    with ExitStack() as stack:
        for register, hook in (
            (hooks.register_module_parameter_registration_hook, tensor),
            (hooks.register_module_buffer_registration_hook, tensor),
            (hooks.register_module_module_registration_hook, module),
        ):
            stack.callback(register(hook).remove)
        yield
