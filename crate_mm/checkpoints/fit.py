"""Load a checkpoint's weights into a model: all of them or none, or the backbone alone.

Shapes: N patches on a grid of rows x columns, d embedding dimensions.
"""

import logging
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..io.log import print_log
from ..io.untrusted import sanitized
from ..models.backbone import PatchKernel, Positions
from ..models.tasks.base import Task, backbone_of
from .resize import MODES, fit_patch_kernel, fit_positions
from .unwrap import Checkpoint, as_checkpoint
from .validate import FORMAT, CheckpointError

BACKBONE = "backbone."  # key prefix of the transferred part
MAX_ROWS = 1000  # rows of each kind in a transfer table
OUTER_PREFIXES = ("model.", "net.", "network.")  # prefixes of a whole model in third-party code


def load_weights(model: nn.Module, contents: dict, source: str | Path = "the checkpoint") -> None:
    """Load the result of ``read_checkpoint`` into the model; see ``load_strict``."""
    load_strict(model, as_checkpoint(contents, source))


def load_strict(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Load all of a checkpoint's weights into the model.

    Raises:
        CheckpointError: a parameter is missing or unexpected, or has a different shape or dtype kind. The model is
            unchanged.
    """
    expected, source = model.state_dict(), checkpoint.path
    weights = match_key_prefix(checkpoint, model, expected)
    check_state_dict(expected, weights, source, checkpoint.meta)
    real = {name: value for name, value in weights.items() if value.is_floating_point() and not value.is_meta}
    # PyTorch's isfinite() does not support 8-bit floats.
    real = {name: value.half() if value.itemsize == 1 else value for name, value in real.items()}
    nonfinite = [name for name, value in real.items() if not value.isfinite().all()]
    if nonfinite:
        print_log(
            f"{sanitized(source)} has non-finite values in {sanitized(nonfinite[0])} and {len(nonfinite) - 1} other "
            "tensors: the model's outputs are meaningless",
            "current",
            logging.WARNING,
        )
    model.load_state_dict(weights)


def match_key_prefix(checkpoint: Checkpoint, model: nn.Module, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a checkpoint's weights under the model's key prefix.

    If the model has none of the names, a prefix such as 'model.' is removed, or 'backbone.' is added to the names of a
    bare backbone, provided that the model has every resulting name. The parameter names of a wrapped library model
    (``original_names``) are translated. Otherwise the weights are returned unchanged.
    """
    weights = checkpoint.weights
    backbone = backbone_of(model)
    original = {} if backbone is None else backbone.original_names
    if 2 * len(weights.keys() & original.keys()) > len(weights):
        return _from_original(checkpoint, backbone, expected)
    if not weights or any(name in expected for name in weights):
        return weights
    changes = [(f"removed the prefix {prefix!r} from the parameter names", prefix, "") for prefix in OUTER_PREFIXES]
    changes.append(("the file holds a backbone without a task", "", BACKBONE))
    for note, before, after in changes:
        candidate = {after + name.removeprefix(before): value for name, value in weights.items()}
        if all(name.startswith(before) for name in weights) and candidate.keys() <= expected.keys():
            checkpoint.notes.append(note)
            return candidate
    return weights


def _from_original(checkpoint: Checkpoint, backbone: nn.Module, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Translate weights from the names of the model that a backbone wraps.

    The classifier's weights are loaded into the head, or not at all if the model's head has no ``fc``.
    """
    renamed, unused = {}, []
    classifier = backbone.original_classifier()
    for name, value in checkpoint.weights.items():
        part, _, last = name.rpartition(".")
        if name in backbone.original_names:
            renamed |= {f"{BACKBONE}{own}": value for own in backbone.original_names[name]}
        elif part != classifier:
            renamed[f"{BACKBONE}{name}"] = value
        elif f"head.fc.{last}" in expected:
            renamed[f"head.fc.{last}"] = value
        else:
            unused.append(name)
    checkpoint.notes.append(f"translated from the parameter names of the model that {type(backbone).__name__} wraps")
    if unused:
        checkpoint.notes.append(f"weights that the model does not use: {', '.join(unused)}")
    return renamed


def check_state_dict(
    expected: dict[str, torch.Tensor],
    weights: dict[str, torch.Tensor],
    source: str | Path = "the checkpoint",
    meta: dict[str, Any] | None = None,
) -> None:
    """Raise ``CheckpointError`` unless the weights have the expected names, shapes and dtype kinds.

    Args:
        expected: the model's state dict.
        weights: the file's state dict.
        source: the file, for the message.
        meta: the file's metadata. If names differ, the message also names another format version of the file.
    """
    shapes = [
        f"{key} is {tuple(weights[key].shape)} in the file and {tuple(expected[key].shape)} in the model"
        for key in expected
        if key in weights and weights[key].shape != expected[key].shape
    ]
    kinds = [
        f"{key} holds {_dtype_kind(weights[key])} in the file and {_dtype_kind(expected[key])} in the model"
        for key in expected
        if key in weights and not same_dtype_kind(weights[key], expected[key])
    ]
    missing = [f"{key} is missing" for key in expected if key not in weights]
    unexpected = [f"{sanitized(key)} is unexpected" for key in weights if key not in expected]
    problems = shapes + kinds + missing + unexpected
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        if (missing or unexpected) and (meta or {}).get("model") and meta.get("format") != FORMAT:
            version = "no format version" if meta.get("format") is None else f"format version {meta['format']}"
            more += f"; it has {version}, this crate_mm has {FORMAT}: use the version of crate_mm that wrote it"
        raise CheckpointError(f"{source} does not fit the model: {'; '.join(problems[:3])}{more}")


def same_dtype_kind(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Return whether two tensors have the same dtype kind; PyTorch would convert between kinds and lose information."""
    return _dtype_kind(a) == _dtype_kind(b)


def _dtype_kind(tensor: torch.Tensor) -> str:
    if tensor.dtype == torch.bool:
        return "booleans"
    return "complex numbers" if tensor.is_complex() else "real numbers" if tensor.is_floating_point() else "integers"


class TransferReport(NamedTuple):
    """Result of a transfer: the parameters by outcome, each with its shape or its change of shape."""

    loaded: dict[str, str]
    resized: dict[str, str]
    dropped: dict[str, str]
    new: dict[str, str]

    def table(self) -> str:
        """Return lines for the log: loaded tensors counted by part, all others by name."""
        parts: dict[str, int] = {}
        for name in self.loaded:
            part = ".".join(name.split(".")[:2])
            parts[part] = parts.get(part, 0) + 1
        rows = [("loaded", sanitized(part), f"{count} tensors") for part, count in parts.items()]
        for kind in ("resized", "dropped", "new"):
            entries = list(getattr(self, kind).items())
            rows += [(kind, sanitized(name), shape) for name, shape in entries[:MAX_ROWS]]
            rows += [(kind, f"and {len(entries) - MAX_ROWS} more", "")] if len(entries) > MAX_ROWS else []
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        return "\n".join(f"  {kind:<{widths[0]}}  {name:<{widths[1]}}  {shape}" for kind, name, shape in rows)


def transfer_backbone(
    model: nn.Module,
    checkpoint: Checkpoint,
    positions: str = "bicubic",
    patches: str | None = None,
    part: str | None = None,
) -> TransferReport:
    """Load a model's backbone from a checkpoint, leave everything else unchanged, and report each parameter.

    Position embeddings for another patch grid are resized. Patch embeddings for another patch size are resized if
    ``patches`` names an interpolation. ``resizable`` of the backbone lists both. A tensor that the model lacks, or that
    has a different shape, is dropped. A parameter that the checkpoint lacks keeps its initialization.

    Args:
        model: a task with a ``backbone``.
        checkpoint: a checkpoint of this task or of another one.
        positions: interpolation of position embeddings, the setting ``resize_positions``.
        patches: interpolation of patch embeddings, the setting ``resize_patches``; None raises an error for another
            patch size, 'new' keeps the initialization.
        part: the checkpoint's part to load as the backbone, the setting ``transfer_from``; by default the part that
            the checkpoint's task declares.

    Raises:
        ValueError: unknown ``positions`` or ``patches``.
        CheckpointError: the checkpoint has no such part, or fills less than half of the backbone's elements and so
            belongs to another model. The model is unchanged.
    """
    if positions not in MODES or patches not in (*MODES, "new", None):
        raise ValueError(f"resize_positions {positions!r} and resize_patches {patches!r}: choose {', '.join(MODES)}")
    expected, source = model.state_dict(), checkpoint.path
    backbone = backbone_of(model)
    if "backbone" not in dict(model.named_children()):
        raise CheckpointError(f"{type(model).__name__} has no backbone to load from {source}")
    weights = _with_part_as_backbone(checkpoint, match_key_prefix(checkpoint, model, expected), expected, part)
    resizable = {} if backbone is None else backbone.resizable()
    resizable = {f"{BACKBONE}{name}": how for name, how in resizable.items()}
    if positions != "bicubic" and any(isinstance(how, Positions) and how.resize for how in resizable.values()):
        raise ValueError(
            f"{type(model.backbone).__name__} has its own rule for resizing positions: leave resize_positions out"
        )
    result = TransferReport({}, {}, {}, {})
    filled = {}
    for name, value in weights.items():
        shape = _shape(value)
        if name not in expected or not name.startswith(BACKBONE):
            known = name in expected
            result.dropped[name] = shape if known else f"{shape}: the model has no parameter of this name"
            continue
        if not same_dtype_kind(value, expected[name]):
            kind = str(value.dtype).removeprefix("torch.")
            raise CheckpointError(
                f"{source} has a dtype that does not match the model's: its {sanitized(name)} is {kind}"
            )
        how = resizable.get(name)
        if isinstance(how, Positions) and value.ndim == 3 and _is_embedding(value, expected[name].shape[2]):
            fitted, change = fit_positions(checkpoint, value, how, positions)
        elif isinstance(how, PatchKernel) and value.ndim == expected[name].ndim:
            fitted, change = fit_patch_kernel(checkpoint, value, expected[name], how, patches)
        else:
            fitted, change = value if value.shape == expected[name].shape else None, ""
        if fitted is None:
            result.dropped[name] = f"{shape}, the model's is {_shape(expected[name])}"
        else:
            filled[name] = fitted
            (result.resized if change else result.loaded)[name] = change or shape
    result.new.update({name: _shape(value) for name, value in expected.items() if name not in filled})

    new = [name for name, how in resizable.items() if isinstance(how, PatchKernel)] if patches == "new" else []
    size = sum(v.numel() for name, v in expected.items() if name.startswith(BACKBONE) and name not in new)
    num_filled = sum(value.numel() for value in filled.values())
    if not filled or 2 * num_filled < size:
        dropped = result.dropped.items()
        unlike = [f"{name} is {shape}" for name, shape in dropped if name not in expected or name.startswith(BACKBONE)]
        missing = [f"{name} is missing" for name in result.new if name.startswith(BACKBONE)]
        raise CheckpointError(
            f"{source} is of another model: it fills {num_filled:,} of the backbone's {size:,} elements; "
            f"{(unlike or missing or ['it has no parameters'])[0]}"
        )
    model.load_state_dict({**expected, **filled})
    if isinstance(model, Task):
        model.after_transfer()
    return result


def _with_part_as_backbone(
    checkpoint: Checkpoint, weights: dict[str, Tensor], expected: dict[str, Tensor], part: str | None
) -> dict[str, Tensor]:
    """Return the weights with a part, such as a teacher, renamed to the backbone.

    Raises:
        CheckpointError: no module of this name has the backbone's parameters.
    """
    if part in checkpoint.parts:
        checkpoint.notes.append(f"loading its {part} as the backbone (transfer_from)")
        return checkpoint.parts[part]
    if checkpoint.parts and part == "backbone":
        raise CheckpointError(
            f"{checkpoint.path} has no part 'backbone': set transfer_from to {' or '.join(map(repr, checkpoint.parts))}"
        )
    part = part or checkpoint.meta.get("transfer_from") or "backbone"
    if part == "backbone":
        return weights
    names = {name.removeprefix(BACKBONE) for name in expected if name.startswith(BACKBONE)}
    depths = {name.count(".") + 1 for name in names}
    splits = (key.rsplit(".", depth) for key in weights for depth in depths if key.count(".") >= depth)
    counts = Counter(holder for holder, *name in splits if ".".join(name) in names)
    holders = [holder for holder, count in counts.items() if 2 * count >= len(names)]
    holder = next((name for name in (part, f"{part}.backbone") if name in holders), None)
    if holder is None:
        known = sorted({name.removesuffix(".backbone") for name in holders})
        raise CheckpointError(
            f"{checkpoint.path} has no part {sanitized(part)!r} to load as the backbone (transfer_from): it has "
            f"{', '.join(map(sanitized, [*checkpoint.parts, *known])) or 'none'}"
        )
    backbone = {f"{BACKBONE}{key[len(holder) + 1 :]}": v for key, v in weights.items() if key.startswith(f"{holder}.")}
    checkpoint.notes.append(f"loading its {sanitized(holder)} as the backbone (transfer_from)")
    rest = {key: v for key, v in weights.items() if not key.startswith((f"{holder}.", BACKBONE))}
    return {**backbone, **rest}


def _is_embedding(value: Tensor, embed_dim: int) -> bool:
    """Return whether the shape is ``(1, 1 + N, d)`` with at least one patch."""
    return value.shape[0] == 1 and value.shape[1] >= 2 and value.shape[2] == embed_dim


def _shape(value: Tensor) -> str:
    return " x ".join(map(str, value.shape)) or "scalar"
