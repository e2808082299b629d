"""Export models to torch.export, ONNX or TorchScript programs that run without this package, and verify the output.

Shapes: B images, C channels, H x W pixels; B windows of N tokens.
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
from ...models import LanguageModel
from ...models.tasks.base import backbone_of

KINDS = {"torch-export": ".pt2", "onnx": ".onnx", "torchscript": ".pt"}
DTYPES = ("float32", "bfloat16", "int8")
DYNAMIC_DIMS = "batch", "height", "width"  # dimensions that may be dynamic


class ExportError(ValueError):
    """The model does not support this export, or the program's output differs from the model's."""


class Program(nn.Module):
    """The exported module: uint8 images ``(B, C, H, W)`` to logits or features. It normalizes the images itself.

    Args:
        task: a model with a preprocessor that has ``normalize``.
        mode: 'tensor' for the task's output, 'features' for one vector per image.
        dtype: dtype of matrix products.
    """

    def __init__(self, task: nn.Module, mode: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.task, self.mode, self.dtype = task, mode, dtype

    def forward(self, images: Tensor) -> Tensor:
        pixels = self.task.data_preprocessor.normalize(images)
        return self.task(pixels.to(self.dtype), mode=self.mode).float()


class TokenProgram(Program):
    """The exported language model: token IDs ``(B, N)`` to the logits of the next tokens, without a cache."""

    def forward(self, tokens: Tensor) -> Tensor:
        return self.task(tokens, mode=self.mode).float()


def export(
    model: nn.Module,
    path: str | Path,
    kind: str,
    images: Tensor,
    mode: str = "tensor",
    dynamic: bool | str = False,
    dtype: str = "float32",
) -> dict[str, Any]:
    """Export a model to a file, run the file on images, and compare its output with the model's.

    Args:
        model: a model in eval mode on the CPU.
        path: file to write; ``<path>.json`` beside it describes input and output.
        kind: one of ``KINDS``.
        images: uint8 ``(B, C, H, W)``, or for a language model token IDs ``(B, N)``. Without ``dynamic`` the program
            accepts only the batch size B.
        mode: 'tensor' for the model's output, 'features' for one vector per image.
        dynamic: accept any batch size, and any image size if the model computes its positions. 'batch' accepts any
            batch size if the export supports it, else only B.
        dtype: one of ``DTYPES``: bfloat16 for torch-export and torchscript, int8 (8-bit weights of matrix products) for
            onnx.

    Returns:
        The content of the JSON file: ``input``, ``output``, ``classes``, ``test_transforms``, ``largest_difference``,
        ``output_deviation`` and, for logits, ``same_first``: the fraction of images, or pixels, with the same top-1
        class.

    Raises:
        ExportError: the model does not support this export, a package is missing, or the program's output differs from
            the model's by more than rounding.
    """
    is_text = isinstance(model, LanguageModel)
    program_type = TokenProgram if is_text else Program
    if mode == "tensor" and not model.num_classes and not is_text:
        raise ExportError(f"{type(model).__name__} has no logits: export its features")
    if kind not in KINDS:
        raise ExportError(f"unknown export format {kind!r}: choose {', '.join(KINDS)}")
    if (dtype == "int8") != (kind == "onnx") and dtype != "float32":
        raise ExportError(
            f"{kind} does not support {dtype}: use bfloat16 with torch-export or torchscript, int8 with onnx"
        )
    with torch.inference_mode():
        expected = program_type(model, mode, torch.float32)(images)
    model_copy = copy.deepcopy(model)
    backbone = backbone_of(model_copy)
    if backbone is not None:
        backbone.fuse()
    if dtype == "bfloat16":
        model_copy.bfloat16()
        model_copy.data_preprocessor.float()
    program = program_type(model_copy, mode, torch.bfloat16 if dtype == "bfloat16" else torch.float32)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        file = Path(folder) / f"program{KINDS[kind]}"
        dynamic_dims = _write(program.eval().requires_grad_(False), file, kind, images, dynamic)
        if dtype == "int8":
            _to_int8(file)
        run = load_program(file, kind)
        output = _check_other_sizes(run, program, images, dynamic_dims) if dtype == "float32" else run(images)
        manifest = {
            "kind": kind,
            "dtype": dtype,
            "input": {
                "name": "tokens" if is_text else "images",
                "dtype": str(images.dtype).removeprefix("torch."),
                "shape": list(images.shape),
                "any": sorted(dynamic_dims),
            },
            "output": {"what": "logits" if mode == "tensor" else "features", "shape": list(expected.shape)},
            "classes": model.class_names,
            "test_transforms": model.test_transforms,
            "largest_difference": (output - expected).abs().max().item(),
            "output_deviation": expected.std().item(),
            "torch": str(torch.__version__),
        }
        if is_text:
            manifest |= {"tokenizer": model.tokenizer, "cache": "left out: each call computes all tokens of the window"}
        if mode == "tensor":
            classes = -1 if is_text else 1  # dimension of the classes or next tokens
            manifest["same_first"] = (output.argmax(classes) == expected.argmax(classes)).double().mean().item()
        limit = 1e-4 * max(expected.abs().max().item(), 1) if dtype == "float32" else float("inf")
        if not manifest["largest_difference"] < limit:  # also true for NaN
            raise ExportError(f"the {kind} program differs from the model by {manifest['largest_difference']:g}")
        with atomic_file(path) as target:
            target.write(file.read_bytes())
    with atomic_file(f"{path}.json", text=True) as target:
        json.dump(manifest, target, indent=1)
    return manifest


def load_program(path: str | Path, kind: str) -> Callable[[Tensor], Tensor]:
    """Load a program written by ``export``, as a function of uint8 images ``(B, C, H, W)`` or token IDs ``(B, N)``."""
    if kind == "torchscript":
        return torch.jit.load(str(path))
    if kind == "torch-export":
        return torch.export.load(str(path)).module()
    session = _require("onnxruntime").InferenceSession(str(path))
    (entry,) = session.get_inputs()
    return lambda images: torch.from_numpy(session.run(None, {entry.name: images.numpy()})[0])


def _write(program: Program, path: Path, kind: str, images: Tensor, dynamic: bool | str) -> set[str]:
    """Write the program; return its dynamic dimensions, a subset of ``DYNAMIC_DIMS``."""
    if kind == "torchscript":
        torch.jit.save(_call_exporter(torch.jit.trace, program, _two_or_more(images)), str(path))
        return {"batch"}
    exported, dynamic_dims = _export_program(program, images, dynamic)
    if kind == "torch-export":
        _call_exporter(torch.export.save, exported, str(path))
        return dynamic_dims
    _require("onnxscript")
    try:
        _call_exporter(
            torch.onnx.export, exported, (images,), str(path), dynamo=True, external_data=False, verbose=False
        )
    except ExportError as error:
        if "symbolic sizes" in str(error.__cause__) and dynamic_dims:  # PyTorch 2.6
            raise ExportError(
                f"PyTorch {torch.__version__} cannot write ONNX with a dynamic batch size: use --batch N or a newer "
                "PyTorch"
            ) from error.__cause__
        raise
    return dynamic_dims


def _export_program(
    program: Program, images: Tensor, dynamic: bool | str
) -> tuple[torch.export.ExportedProgram, set[str]]:
    batch, examples = torch.export.Dim("batch", min=1, max=4096), _two_or_more(images)
    patch = _patch_of(program.task)
    if patch and dynamic is True:
        sides = {2 + i: patch[i] * torch.export.Dim(name, min=2, max=512) for i, name in enumerate(DYNAMIC_DIMS[1:])}
        try:
            return torch.export.export(program, (examples,), dynamic_shapes=({0: batch, **sides},)), set(DYNAMIC_DIMS)
        except Exception as error:  # a table of position embeddings fixes the image size
            if "onstraints violated" not in str(error):
                raise ExportError(f"the model cannot be exported: {first_line(error)}") from error
    if dynamic:
        try:
            return _call_exporter(torch.export.export, program, (examples,), dynamic_shapes=({0: batch},)), {"batch"}
        except ExportError:
            if dynamic is True:
                raise
    return _call_exporter(torch.export.export, program, (images,)), set()


def _two_or_more(images: Tensor) -> Tensor:
    """Return images ``(B, C, H, W)``; repeat a single image, because exporters specialize on a size of 1."""
    return torch.cat([images, images]) if len(images) == 1 else images


def _call_exporter(write: Callable, *args: Any, **kwargs: Any) -> Any:
    """Call an exporter. It may raise any exception, with pages of text: raise ``ExportError`` with the first line."""
    try:
        return write(*args, **kwargs)
    except OSError:  # a disk error
        raise
    except Exception as error:
        raise ExportError(f"the model cannot be exported: {first_line(error)}") from error


def _patch_of(task: nn.Module) -> tuple[int, int] | None:
    """Return height and width of a patch, None if unknown. Dynamic image sizes are multiples of the patch size."""
    backbone = backbone_of(task)
    spec = None if backbone is None else backbone.input_spec
    layout = None if spec is None else backbone.layout(torch.empty(1, *spec.shape, device="meta"))
    if layout is None:
        return None
    H, W = spec.size
    return H // layout.rows, W // layout.columns


def _check_other_sizes(run: Callable, program: Program, images: Tensor, dynamic_dims: set[str]) -> Tensor:
    """Compare a program with the model at other sizes of its dynamic dimensions; return its output for the images.

    Raises:
        ExportError: the outputs differ.
    """
    resized = [images[:1], torch.cat([images, images, images])] if "batch" in dynamic_dims else []
    if "height" in dynamic_dims:
        resized.append(torch.cat([images, images], dim=3))
    for batch in resized:
        with torch.inference_mode():
            expected = program(batch)
        difference = (run(batch) - expected).abs().max().item()
        if not difference < 1e-4 * max(expected.abs().max().item(), 1):
            raise ExportError(f"the program differs from the model by {difference:g} at {tuple(batch.shape)}")
    return run(images)


def _to_int8(path: Path) -> None:
    _require("onnxruntime")
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(str(path), str(path), weight_type=QuantType.QInt8)


def _require(package: str) -> ModuleType:
    """Import a package that ONNX needs."""
    try:
        return import_module(package)
    except ImportError:
        raise ExportError(f"ONNX needs {package}, which is not installed: pip install 'crate_mm[export]'") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporters' progress logs and warnings."""
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
