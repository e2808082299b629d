"""A model as a program that runs without this package: torch.export, ONNX or TorchScript, compared before it counts.

Shapes: B images, C channels, H x W pixels.
"""

import copy
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ...checkpoints.validate import first_line
from ...io.files import atomic_file
from ...models.tasks.base import backbone_of

KINDS = {"torch-export": ".pt2", "onnx": ".onnx", "torchscript": ".pt"}
DTYPES = ("float32", "bfloat16", "int8")
FREE = "batch", "height", "width"  # what a program may take in any size


class ExportError(ValueError):
    """A model that cannot be exported so, or a program that computes something else."""


class Program(nn.Module):
    """What is exported: uint8 images ``(B, C, H, W)`` to logits or features, the normalisation inside.

    Args:
        task: a model with a preprocessor that has ``normalize``.
        mode: 'tensor' for its output, 'features' for one vector an image.
        dtype: of the products.
    """

    def __init__(self, task: nn.Module, mode: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.task, self.mode, self.dtype = task, mode, dtype

    def forward(self, images: Tensor) -> Tensor:
        pixels = self.task.data_preprocessor.normalize(images)
        return self.task(pixels.to(self.dtype), mode=self.mode).float()


def export(
    model: nn.Module,
    path: str | Path,
    kind: str,
    images: Tensor,
    mode: str = "tensor",
    dynamic: bool | str = False,
    dtype: str = "float32",
) -> dict[str, Any]:
    """Write a model as a program, run the file on images, and compare what it gives with what the model gives.

    Args:
        model: in eval mode, on the CPU.
        path: file to write; ``<path>.json`` beside it says what goes in and what comes out.
        kind: one of ``KINDS``.
        images: uint8 ``(B, C, H, W)``; without ``dynamic`` the program takes batches of this size alone.
        mode: 'tensor' for the model's output, 'features' for one vector an image.
        dynamic: take batches of any size, and images of any size where the model computes its positions. 'batch' takes
            batches of any size where the model can be exported so, and else batches of this size alone.
        dtype: one of ``DTYPES``. bfloat16 is of torch-export and torchscript; int8, of ONNX alone, keeps the weights
            of products in 8 bits.

    Returns:
        What the JSON file holds: ``input``, ``output``, ``classes``, ``eval_transforms``, ``largest_difference``,
        ``output_deviation`` and, of logits, ``same_first``: the share of the images whose first class is the same.

    Raises:
        ExportError: the model cannot be exported so, the packages for it are not there, or the program's output is
            further from the model's than rounding takes it.
    """
    if mode == "tensor" and not model.is_classifier:
        raise ExportError(f"{type(model).__name__} has no logits: export its features")
    if kind not in KINDS:
        raise ExportError(f"a program is one of {', '.join(KINDS)}, not {kind!r}")
    if (dtype == "int8") != (kind == "onnx") and dtype != "float32":
        raise ExportError(f"{kind} has no {dtype}: bfloat16 is of torch-export and torchscript, int8 of onnx")
    with torch.inference_mode():
        expected = Program(model, mode, torch.float32)(images)
    copied = copy.deepcopy(model)
    backbone = backbone_of(copied)
    if backbone is not None:
        backbone.fuse()
    if dtype == "bfloat16":
        copied.bfloat16()
        copied.data_preprocessor.float()
    program = Program(copied, mode, torch.bfloat16 if dtype == "bfloat16" else torch.float32)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        written = Path(folder) / f"program{KINDS[kind]}"
        free = _write(program.eval().requires_grad_(False), written, kind, images, dynamic)
        if dtype == "int8":
            _to_int8(written)
        run = load_program(written, kind)
        found = _at_other_sizes(run, program, images, free) if dtype == "float32" else run(images)
        about = {
            "kind": kind,
            "dtype": dtype,
            "input": {"name": "images", "dtype": "uint8", "shape": list(images.shape), "any": sorted(free)},
            "output": {"what": "logits" if mode == "tensor" else "features", "shape": list(expected.shape)},
            "classes": model.class_names,
            "test_transforms": model.test_transforms,
            "largest_difference": (found - expected).abs().max().item(),
            "output_deviation": expected.std().item(),
            "torch": str(torch.__version__),
        }
        if mode == "tensor":
            about["same_first"] = (found.argmax(-1) == expected.argmax(-1)).double().mean().item()
        limit = 1e-4 * max(expected.abs().max().item(), 1) if dtype == "float32" else float("inf")
        if not about["largest_difference"] < limit:  # what is no number is not below either
            raise ExportError(f"the {kind} program differs from the model by {about['largest_difference']:g}")
        with atomic_file(path) as file:
            file.write(written.read_bytes())
    with atomic_file(f"{path}.json", text=True) as file:
        json.dump(about, file, indent=1)
    return about


def load_program(path: str | Path, kind: str) -> Callable[[Tensor], Tensor]:
    """A program that ``export`` has written, as a function of uint8 images ``(B, C, H, W)``."""
    if kind == "torchscript":
        return torch.jit.load(str(path))
    if kind == "torch-export":
        return torch.export.load(str(path)).module()
    session = _needed("onnxruntime").InferenceSession(str(path))
    (entry,) = session.get_inputs()
    return lambda images: torch.from_numpy(session.run(None, {entry.name: images.numpy()})[0])


def _write(program: Program, path: Path, kind: str, images: Tensor, dynamic: bool | str) -> set[str]:
    """Write the program; return which of ``FREE`` it takes in any size."""
    if kind == "torchscript":
        torch.jit.save(_sentence(torch.jit.trace, program, _two_or_more(images)), str(path))
        return {"batch"}
    exported, free = _exported(program, images, dynamic)
    if kind == "torch-export":
        _sentence(torch.export.save, exported, str(path))
        return free
    _needed("onnxscript")
    try:
        _sentence(torch.onnx.export, exported, (images,), str(path), dynamo=True, external_data=False, verbose=False)
    except ExportError as error:
        if "symbolic sizes" in str(error.__cause__) and free:  # PyTorch 2.6
            raise ExportError(
                f"PyTorch {torch.__version__} cannot write ONNX for any number of images: give --batch N, or take a "
                "newer PyTorch"
            ) from error.__cause__
        raise
    return free


def _exported(program: Program, images: Tensor, dynamic: bool | str) -> tuple[torch.export.ExportedProgram, set[str]]:
    batch, several = torch.export.Dim("batch", min=1, max=4096), _two_or_more(images)
    patch = _patch_of(program.task)
    if patch and dynamic is True:
        sides = {2 + i: patch[i] * torch.export.Dim(name, min=2, max=512) for i, name in enumerate(FREE[1:])}
        try:
            return torch.export.export(program, (several,), dynamic_shapes=({0: batch, **sides},)), set(FREE)
        except Exception as error:  # its positions are a table, of one size
            if "onstraints violated" not in str(error):
                raise ExportError(f"the model cannot be exported: {first_line(error)}") from error
    if dynamic:
        try:
            return _sentence(torch.export.export, program, (several,), dynamic_shapes=({0: batch},)), {"batch"}
        except ExportError:
            if dynamic is True:
                raise
    return _sentence(torch.export.export, program, (images,)), set()


def _two_or_more(images: Tensor) -> Tensor:
    """Images ``(B, C, H, W)``, a single one twice: exporters take a size of 1 for a constant."""
    return torch.cat([images, images]) if len(images) == 1 else images


def _sentence(write: Callable, *args: Any, **kwargs: Any) -> Any:
    """What an exporter gives; what it raises, which may be anything and has pages, becomes one sentence."""
    try:
        return write(*args, **kwargs)
    except OSError:  # of the disk
        raise
    except Exception as error:
        raise ExportError(f"the model cannot be exported: {first_line(error)}") from error


def _patch_of(task: nn.Module) -> tuple[int, int] | None:
    """Height and width of a patch, which images of any size are whole numbers of; None if it is not known."""
    backbone = backbone_of(task)
    spec = None if backbone is None else backbone.input_spec
    layout = None if spec is None else backbone.layout(torch.empty(1, *spec.shape, device="meta"))
    if layout is None:
        return None
    H, W = spec.size
    return H // layout.rows, W // layout.columns


def _at_other_sizes(run: Callable, program: Program, images: Tensor, free: set[str]) -> Tensor:
    """Check a program at whatever it takes in any size, and return what it gives for the images.

    Raises:
        ExportError: it fails or differs there.
    """
    others = [images[:1], torch.cat([images, images, images])] if "batch" in free else []
    if "height" in free:
        others.append(torch.cat([images, images], dim=3))
    for other in others:
        with torch.inference_mode():
            wanted = program(other)
        difference = (run(other) - wanted).abs().max().item()
        if not difference < 1e-4 * max(wanted.abs().max().item(), 1):
            raise ExportError(f"the program differs from the model by {difference:g} at {tuple(other.shape)}")
    return run(images)


def _to_int8(path: Path) -> None:
    _needed("onnxruntime")
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(str(path), str(path), weight_type=QuantType.QInt8)


def _needed(package: str) -> ModuleType:
    """A package that ONNX needs."""
    try:
        return import_module(package)
    except ImportError:
        raise ExportError(f"ONNX needs {package}, which is not here: pip install 'crate_mm[export]'") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what exporters print of their own steps."""
    levels = {log: log.level for log in map(logging.getLogger, (None, "torch.onnx", "onnxscript", "onnx_ir"))}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for log in levels:
            log.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for log, level in levels.items():
                log.setLevel(level)
