"""Weights of a checkpoint put into a model: all or nothing, or the backbone alone.

Shapes: N patches on a grid of rows x columns, d embedding dimensions.
"""

import logging
import math
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..io.log import print_log
from ..io.untrusted import sanitized
from ..models.backbone import PatchKernel, Positions
from ..models.tasks.base import backbone_of
from .resize import MODES, Patch, adapt_patch_kernel, resize_position_embedding, stored_patch
from .unwrap import Checkpoint, as_checkpoint
from .validate import FORMAT, CheckpointError

BACKBONE = "backbone."  # where a task has what transfer takes over
MOST_ROWS = 1000  # of the table, of each kind
# Names under which another code base's model may have the whole of ours.
OUTER = ("model.", "net.", "network.")


def load_weights(model: nn.Module, contents: dict, source: str | Path = "the checkpoint") -> None:
    """``load_strict`` for the contents of a file, as ``read_checkpoint`` returns them."""
    load_strict(model, as_checkpoint(contents, source))


def load_strict(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Load a checkpoint's weights into the model, all of them.

    Raises:
        CheckpointError: a parameter is missing, surplus, of another shape or of another kind of number; the model is
            left as it was.
    """
    wanted, source = model.state_dict(), checkpoint.path
    weights = match_key_prefix(checkpoint, model, wanted)
    check_state_dict(wanted, weights, source, checkpoint.meta)
    real = {name: value for name, value in weights.items() if value.is_floating_point() and not value.is_meta}
    # PyTorch looks at no numbers of a byte.
    real = {name: value.half() if value.itemsize == 1 else value for name, value in real.items()}
    wrong = [name for name, value in real.items() if not value.isfinite().all()]
    if wrong:
        print_log(
            f"{sanitized(source)} holds numbers that are not finite, in {sanitized(wrong[0])} and {len(wrong) - 1} others: "
            "what the model computes with them means nothing",
            "current",
            logging.WARNING,
        )
    model.load_state_dict(weights)


def match_key_prefix(checkpoint: Checkpoint, model: nn.Module, wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's weights under the names of a model, where one change of all names brings them there.

    A backbone that wraps another library's model says that library's names, as ``original_names``.

    That is a prefix such as 'model.' taken off, or, for a backbone by itself, 'backbone.' put before. No name is then
    left that the model does not have; else the names stay as they are, and ``load_strict`` says what does not.
    """
    weights = checkpoint.weights
    backbone = backbone_of(model)
    original = {} if backbone is None else backbone.original_names
    if 2 * len(weights.keys() & original.keys()) > len(weights):
        return _from_original(checkpoint, backbone, wanted)
    if not weights or any(name in wanted for name in weights):
        return weights
    changes = [(f"{prefix!r} is taken from the names", prefix, "") for prefix in OUTER]
    changes.append(("it is a backbone by itself", "", "backbone."))
    for note, before, after in changes:
        changed = {after + name.removeprefix(before): value for name, value in weights.items()}
        if all(name.startswith(before) for name in weights) and changed.keys() <= wanted.keys():
            checkpoint.notes.append(note)
            return changed
    return weights


def _from_original(checkpoint: Checkpoint, backbone: nn.Module, wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the names of the model that a backbone wraps, under ours.

    The classifier becomes the head's where it takes what the head pools; a head without classes leaves it out.
    """
    renamed, left = {}, []
    classifier = backbone.original_classifier()
    for name, value in checkpoint.weights.items():
        part, _, last = name.rpartition(".")
        if name in backbone.original_names:
            renamed |= {f"{BACKBONE}{own}": value for own in backbone.original_names[name]}
        elif part != classifier:
            renamed[f"{BACKBONE}{name}"] = value
        elif f"head.fc.{last}" in wanted:
            renamed[f"head.fc.{last}"] = value
        else:
            left.append(name)
    checkpoint.notes.append(f"it has the names of the model that {type(backbone).__name__} wraps, which are translated")
    if left:
        checkpoint.notes.append(f"left out, as no part of the model takes it: {', '.join(left)}")
    return renamed


def check_state_dict(
    wanted: dict[str, torch.Tensor],
    weights: dict[str, torch.Tensor],
    source: str | Path = "the checkpoint",
    meta: dict[str, Any] | None = None,
) -> None:
    """Raise ``CheckpointError`` unless the weights have the names, shapes and kinds of number of those wanted.

    Args:
        wanted: of the model.
        weights: of the file.
        source: the file, for the message.
        meta: what the file says of itself. Where names differ, and it is of another version of the format, the message
            says so.
    """
    shapes = [
        f"{key} is {tuple(weights[key].shape)} there and {tuple(wanted[key].shape)} here"
        for key in wanted
        if key in weights and weights[key].shape != wanted[key].shape
    ]
    kinds = [
        f"{key} is of {_number_kind(weights[key])} there and of {_number_kind(wanted[key])} here"
        for key in wanted
        if key in weights and not same_dtype_kind(weights[key], wanted[key])
    ]
    missing = [f"{key} is missing" for key in wanted if key not in weights]
    surplus = [f"{sanitized(key)} is surplus" for key in weights if key not in wanted]
    problems = shapes + kinds + missing + surplus
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        if (missing or surplus) and (meta or {}).get("model") and meta.get("format") != FORMAT:
            version = "no format version" if meta.get("format") is None else f"format version {meta['format']}"
            more += f"; it has {version}, this crate_mm has {FORMAT}: use the version of crate_mm that wrote it"
        raise CheckpointError(f"{source} does not fit the model: {'; '.join(problems[:3])}{more}")


def same_dtype_kind(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether both hold real, complex, whole or truth values: PyTorch would convert one to the other, with a loss."""
    return _number_kind(one) == _number_kind(other)


def _number_kind(tensor: torch.Tensor) -> str:
    if tensor.dtype == torch.bool:
        return "truth values"
    return "complex numbers" if tensor.is_complex() else "real numbers" if tensor.is_floating_point() else "integers"


class TransferReport(NamedTuple):
    """What became of each parameter, by name: its shape, or from which to which shape it went."""

    loaded: dict[str, str]
    resized: dict[str, str]
    dropped: dict[str, str]
    new: dict[str, str]

    def table(self) -> str:
        """Lines for the log: what was taken over, by part, and everything else by name."""
        parts: dict[str, int] = {}
        for name in self.loaded:
            part = ".".join(name.split(".")[:2])
            parts[part] = parts.get(part, 0) + 1
        rows = [("loaded", sanitized(part), f"{count} tensors") for part, count in parts.items()]
        for kind in ("resized", "dropped", "new"):
            named = list(getattr(self, kind).items())
            rows += [(kind, sanitized(name), shape) for name, shape in named[:MOST_ROWS]]
            rows += [(kind, f"and {len(named) - MOST_ROWS} more", "")] if len(named) > MOST_ROWS else []
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        return "\n".join(f"  {kind:<{widths[0]}}  {name:<{widths[1]}}  {what}" for kind, name, what in rows)


def transfer_backbone(
    model: nn.Module,
    checkpoint: Checkpoint,
    positions: str = "bicubic",
    patches: str | None = None,
    part: str | None = None,
) -> TransferReport:
    """Fill a model's backbone from a checkpoint and leave all else as it is; return what became of each parameter.

    Position embeddings for another grid of patches are resized. So is what embeds patches of another size, if
    ``patches`` says so; a backbone names it in ``resizable``. A tensor that the
    model lacks, or has in another shape, is dropped; what the checkpoint lacks stays as it was initialised.

    Args:
        model: with a part ``backbone``.
        checkpoint: of this task or another.
        positions: how position embeddings are resized, the setting ``resize_positions``.
        patches: how patch embeddings are, the setting ``resize_patches``; with None another size is refused, and with
            'new' the patch embedding stays as it was initialised.
        part: the part of the checkpoint that is taken as the backbone, the setting ``transfer_from``; the one that the
            checkpoint's task declares if not given.

    Raises:
        ValueError: no such ``positions`` or ``patches``.
        CheckpointError: the checkpoint has no such part, or less than half of the backbone's numbers, and is then of
            another model; the model is left as it was.
    """
    if positions not in MODES or patches not in (*MODES, "new", None):
        raise ValueError(f"resize_positions {positions!r} and resize_patches {patches!r}: choose {', '.join(MODES)}")
    wanted, source = model.state_dict(), checkpoint.path
    backbone = backbone_of(model)
    if "backbone" not in dict(model.named_children()):
        raise CheckpointError(f"{type(model).__name__} has no backbone that {source} could fill")
    weights = _with_part_as_backbone(checkpoint, match_key_prefix(checkpoint, model, wanted), wanted, part)
    resizable = {} if backbone is None else backbone.resizable()
    resizable = {f"{BACKBONE}{name}": how for name, how in resizable.items()}
    grids = {name: how for name, how in resizable.items() if isinstance(how, Positions)}
    kernels = {name: how for name, how in resizable.items() if isinstance(how, PatchKernel)}
    if positions != "bicubic" and any(how.resize for how in grids.values()):
        raise ValueError(
            f"{type(model.backbone).__name__} resizes its positions by a rule of its own: leave resize_positions out"
        )
    result = TransferReport({}, {}, {}, {})
    filled = {}
    for name, value in weights.items():
        shape = _shape(value)
        if name in wanted and not name.startswith(BACKBONE):
            result.dropped[name] = shape
        elif name not in wanted:
            result.dropped[name] = f"{shape}, the model has none such"
        elif not same_dtype_kind(value, wanted[name]):
            kind = str(value.dtype).removeprefix("torch.")
            raise CheckpointError(
                f"{source} has other numbers than a model's weights: its {sanitized(name)} is of {kind}"
            )
        elif name in grids and value.ndim == 3 and _is_embedding(value, wanted[name].shape[2]):
            grid, resize = grids[name]
            old = _stored_grid(checkpoint, value, grid, source)
            filled[name] = (resize or partial(resize_position_embedding, mode=positions))(value, old, grid)
            if old == grid:
                result.loaded[name] = shape
            else:
                result.resized[name] = f"{old[0]} x {old[1]} -> {grid[0]} x {grid[1]} patches, {positions}"
        elif name in kernels and value.ndim == wanted[name].ndim:
            order, *new = kernels[name]
            old = stored_patch(checkpoint, value, order)
            kernel, change = adapt_patch_kernel(value, wanted[name], order, old, Patch(*new), patches, source)
            if kernel is None:
                result.dropped[name] = f"{shape}, the model's is {_shape(wanted[name])}"
            else:
                filled[name] = kernel
                (result.resized if change else result.loaded)[name] = change or shape
        elif value.shape == wanted[name].shape:
            filled[name] = value
            result.loaded[name] = shape
        else:
            result.dropped[name] = f"{shape}, the model's is {_shape(wanted[name])}"
    result.new.update({name: _shape(value) for name, value in wanted.items() if name not in filled})

    asked = {name for name in wanted if name.startswith(BACKBONE)} - (kernels.keys() if patches == "new" else set())
    size = sum(wanted[name].numel() for name in asked)
    found = sum(value.numel() for value in filled.values())
    if not filled or 2 * found < size:
        dropped = result.dropped.items()
        unlike = [f"{name} is {what}" for name, what in dropped if name not in wanted or name.startswith(BACKBONE)]
        lacking = [f"{name} is not in it" for name in result.new if name.startswith(BACKBONE)]
        raise CheckpointError(
            f"{source} is of another model: it fills {found:,} of the backbone's {size:,} numbers; "
            f"{(unlike or lacking or ['it holds no parameter'])[0]}"
        )
    model.load_state_dict({**wanted, **filled})
    return result


def _with_part_as_backbone(
    checkpoint: Checkpoint, weights: dict[str, Tensor], wanted: dict[str, Tensor], part: str | None
) -> dict[str, Tensor]:
    """Return weights with those of a part, such as a teacher, under the names of the backbone.

    Raises:
        CheckpointError: no module of this name has the backbone's parameters.
    """
    part = part or checkpoint.meta.get("transfer_from") or "backbone"
    if part == "backbone":
        return weights
    names = {name.removeprefix(BACKBONE) for name in wanted if name.startswith(BACKBONE)}
    depths = {name.count(".") + 1 for name in names}
    splits = (key.rsplit(".", depth) for key in weights for depth in depths if key.count(".") >= depth)
    counts = Counter(holder for holder, *name in splits if ".".join(name) in names)
    holders = [holder for holder, count in counts.items() if 2 * count >= len(names)]
    holder = next((name for name in (part, f"{part}.backbone") if name in holders), None)
    if holder is None:
        known = sorted({name.removesuffix(".backbone") for name in holders})
        raise CheckpointError(
            f"{checkpoint.path} has no part {sanitized(part)!r} that could be the backbone (transfer_from): it has "
            f"{', '.join(map(sanitized, known)) or 'none'}"
        )
    taken = {f"{BACKBONE}{key[len(holder) + 1 :]}": v for key, v in weights.items() if key.startswith(f"{holder}.")}
    checkpoint.notes.append(f"its {sanitized(holder)} is taken as the backbone (transfer_from)")
    rest = {key: v for key, v in weights.items() if not key.startswith((f"{holder}.", BACKBONE))}
    return {**taken, **rest}


def _is_embedding(value: Tensor, embed_dim: int) -> bool:
    """Whether it is of shape ``(1, 1 + N, d)`` with at least one patch."""
    return value.shape[0] == 1 and value.shape[1] >= 2 and value.shape[2] == embed_dim


def _stored_grid(checkpoint: Checkpoint, embedding: Tensor, wanted: tuple[int, int], source: str) -> tuple[int, int]:
    """The grid that a checkpoint's position embeddings are for: what it says of itself, or else what the number tells:
    the one wanted, or a square."""
    num_patches = embedding.shape[1] - 1
    backbone = (checkpoint.model or {}).get("backbone")
    backbone = backbone if isinstance(backbone, dict) else {}
    (H, W), (h, w) = (_pair(backbone.get(key)) for key in ("img_size", "patch_size"))
    if (H // h) * (W // w) == num_patches:
        return H // h, W // w
    side = math.isqrt(num_patches)
    if num_patches == wanted[0] * wanted[1]:
        return wanted
    if side * side != num_patches:
        raise CheckpointError(
            f"{source} has position embeddings for {num_patches} patches, which are no square, and does not say of "
            "which grid: its meta.model.backbone lacks img_size and patch_size"
        )
    return side, side


def _pair(size) -> tuple[int, int]:
    """Height and width of a size in a checkpoint, or ones if it is none."""
    pair = (size, size) if isinstance(size, int) else size
    right = isinstance(pair, (list, tuple)) and len(pair) == 2 and all(isinstance(n, int) and n > 0 for n in pair)
    return tuple(pair) if right else (1, 1)


def _shape(value: Tensor) -> str:
    return " x ".join(map(str, value.shape)) or "scalar"
