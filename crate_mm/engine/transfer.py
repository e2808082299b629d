"""Initialise a model from a checkpoint of another task: the backbone is taken over, the head starts anew.

Shapes: N patches on a grid of rows x columns, d embedding dimensions.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..untrusted import shown
from .checkpoint import CheckpointError, same_kind, stored_weights

HEAD = "head."
MOST_ROWS = 1000  # of the table, of each kind


class Transfer(NamedTuple):
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
        rows = [("loaded", shown(part), f"{count} tensors") for part, count in parts.items()]
        for kind in ("resized", "dropped", "new"):
            named = list(getattr(self, kind).items())
            rows += [(kind, shown(name), shape) for name, shape in named[:MOST_ROWS]]
            rows += [(kind, f"and {len(named) - MOST_ROWS} more", "")] if len(named) > MOST_ROWS else []
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        return "\n".join(f"  {kind:<{widths[0]}}  {name:<{widths[1]}}  {what}" for kind, name, what in rows)


def initialize(model: nn.Module, checkpoint: dict, source: str = "the checkpoint") -> Transfer:
    """Fill a model's backbone from a checkpoint and leave its head as it is; return what became of each parameter.

    Position embeddings for another grid of patches are resized. A tensor that the model lacks, or has in another
    shape, is dropped; what the checkpoint lacks stays as it was initialised.

    Args:
        model: with the parts ``backbone`` and ``head``.
        checkpoint: as ``read_checkpoint`` returns it.
        source: its name in messages.

    Raises:
        CheckpointError: less than half of the backbone's numbers are in the checkpoint, which is then of another
            model; the model is left as it was.
    """
    weights, wanted = stored_weights(checkpoint, source), model.state_dict()
    grids = {f"backbone.{name}": grid for name, grid in getattr(model.backbone, "position_grids", {}).items()}
    result = Transfer({}, {}, {}, {})
    filled = {}
    for name, value in weights.items():
        shape = _shape(value)
        if name.startswith(HEAD):
            result.dropped[name] = shape
        elif name not in wanted:
            result.dropped[name] = f"{shape}, the model has none such"
        elif not same_kind(value, wanted[name]):
            kind = str(value.dtype).removeprefix("torch.")
            raise CheckpointError(f"{source} has other numbers than a model's weights: its {shown(name)} is of {kind}")
        elif name in grids and value.ndim == 3 and _is_embedding(value, wanted[name].shape[2]):
            old = _stored_grid(checkpoint, value, grids[name], source)
            filled[name] = resize_position_embedding(value, old, grids[name])
            if old == grids[name]:
                result.loaded[name] = shape
            else:
                result.resized[name] = f"{old[0]} x {old[1]} -> {grids[name][0]} x {grids[name][1]} patches, bicubic"
        elif value.shape == wanted[name].shape:
            filled[name] = value
            result.loaded[name] = shape
        else:
            result.dropped[name] = f"{shape}, the model's is {_shape(wanted[name])}"
    result.new.update({name: _shape(value) for name, value in wanted.items() if name not in filled})

    size = sum(value.numel() for name, value in wanted.items() if name.startswith("backbone."))
    found = sum(value.numel() for value in filled.values())
    if not filled or 2 * found < size:
        unlike = [f"{name} is {what}" for name, what in result.dropped.items() if not name.startswith(HEAD)]
        lacking = [f"{name} is not in it" for name in result.new if not name.startswith(HEAD)]
        raise CheckpointError(
            f"{source} is of another model: it fills {found:,} of the backbone's {size:,} numbers; "
            f"{(unlike or lacking or ['it holds no parameter'])[0]}"
        )
    model.load_state_dict({**wanted, **filled})
    return result


def resize_position_embedding(embedding: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Interpolate position embeddings to another grid, ``(1, 1 + N, d) -> (1, 1 + N', d)``; the CLS token's is kept.

    Bicubic, with the corners of both grids not aligned; where a grid shrinks, averaged over (anti-aliased).

    Args:
        embedding: CLS token first, then the patches row by row.
        old: (rows, columns) of the embedding's grid.
        new: (rows, columns) wanted.
    """
    if old == new:
        return embedding
    cls_token, patches = embedding[:, :1], embedding[:, 1:]
    image = patches.unflatten(1, old).permute(0, 3, 1, 2)
    resized = F.interpolate(image.float(), size=new, mode="bicubic", align_corners=False, antialias=True)
    return torch.cat([cls_token, resized.to(embedding.dtype).flatten(2).mT], dim=1)


def _is_embedding(value: Tensor, embed_dim: int) -> bool:
    """Whether it is of shape ``(1, 1 + N, d)`` with at least one patch."""
    return value.shape[0] == 1 and value.shape[1] >= 2 and value.shape[2] == embed_dim


def _stored_grid(checkpoint: dict, embedding: Tensor, wanted: tuple[int, int], source: str) -> tuple[int, int]:
    """The grid that a checkpoint's position embeddings are for: what it says of itself, or else what the number tells:
    the one wanted, or a square."""
    num_patches = embedding.shape[1] - 1
    meta = checkpoint.get("meta") or {}
    backbone = (meta.get("model") or {}).get("backbone") or {}
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
