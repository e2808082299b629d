"""Programs that ``export`` writes, run by what runs such, on images that it has not compared them on."""

import json
import sys

import pytest
import torch

from crate_mm import init_model
from crate_mm.extras.interop.export import KINDS, ExportError, Program, export, load_program
from crate_mm.models import MaskedAutoencoder
from tests.models.test_families import MICRO, classifier

# PyTorch 2.6 fails when it decomposes a program whose batch is free; a later release may be the first that does not.
ONNX_TAKES_ANY_BATCH = torch.__version__ >= (2, 7)
needs_onnx_of_any_batch = pytest.mark.skipif(not ONNX_TAKES_ANY_BATCH, reason="this PyTorch fixes the batch of ONNX")


def images(batch=2, size=(32, 32), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, 3, *size), dtype=torch.uint8, generator=generator)


def model_of(family):
    model = classifier(family)
    torch.nn.init.normal_(model.head.fc.weight)
    return model


def check(path, kind, model, mode="tensor", size=(32, 32)):
    run = load_program(path, kind)
    for batch in (1, 7):
        pixels = images(batch, size, seed=batch)
        with torch.no_grad():
            torch.testing.assert_close(run(pixels), Program(model, mode, torch.float32)(pixels), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_an_image_size_is_free_where_positions_are_computed(tmp_path):
    """That every family can be exported is tested in ../models/test_export.py."""
    model = model_of("ToST")
    about = export(model, tmp_path / "x.pt2", "torch-export", images(), mode="features", dynamic=True)
    assert about == json.loads((tmp_path / "x.pt2.json").read_text())
    assert about["input"]["any"] == ["batch", "height", "width"]
    for size in ((32, 32), (40, 64)):
        check(tmp_path / "x.pt2", "torch-export", model, "features", size)


LOWER = {"torch-export": "bfloat16", "onnx": "int8"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=needs_onnx_of_any_batch if kind == "onnx" else ()) for kind in KINDS]
)
def test_every_kind_and_what_lower_precision_costs(kind, tmp_path):
    kind == "onnx" and pytest.importorskip("onnxscript")
    model = model_of("CRATE")
    about = export(model, tmp_path / "x", kind, images(8), dynamic=True)
    assert about["largest_difference"] < 1e-4
    assert about["same_first"] == 1
    assert about["input"]["any"] == ["batch"]  # a table of positions fixes the size
    check(tmp_path / "x", kind, model)
    assert not model.backbone.blocks[0].training
    with torch.no_grad():  # the model itself is neither fused nor changed
        torch.testing.assert_close(model(torch.ones(1, 3, 32, 32)), model_of("CRATE")(torch.ones(1, 3, 32, 32)))
    if kind not in LOWER:
        return
    about = export(model, tmp_path / "y", kind, images(8), dtype=LOWER[kind])
    assert (tmp_path / "y").stat().st_size < 0.85 * (tmp_path / "x").stat().st_size
    assert 1e-4 < about["largest_difference"] < 0.3 * about["output_deviation"]
    run = load_program(tmp_path / "y", kind)
    with torch.no_grad():
        difference = (run(images(8)) - Program(model, "tensor", torch.float32)(images(8))).abs().max().item()
    assert difference == pytest.approx(about["largest_difference"])


@pytest.mark.slow
def test_onnx_of_any_batch_is_refused_where_pytorch_cannot_write_it(tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")

    def fails(*_args, **_kwargs):
        raise RuntimeError("Cannot call numel() on tensor with symbolic sizes/strides")

    if ONNX_TAKES_ANY_BATCH:
        monkeypatch.setattr(torch.onnx, "export", fails)
    with pytest.raises(ExportError, match=r"cannot write ONNX with a dynamic batch size: use --batch N or a newer"):
        export(model_of("CRATE"), tmp_path / "x", "onnx", images(2), dynamic="batch")
    if not ONNX_TAKES_ANY_BATCH:
        export(model_of("CRATE"), tmp_path / "x", "onnx", images(2), dynamic=False)


@pytest.mark.slow
def test_what_is_not_there_is_said(tmp_path, monkeypatch):
    model = model_of("CRATE")
    for kind, dtype in (("onnx", "bfloat16"), ("torchscript", "int8")):
        with pytest.raises(ExportError, match=f"{kind} does not support {dtype}: use bfloat16 with torch-export"):
            export(model, tmp_path / "x", kind, images(), dtype=dtype)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ExportError, match=r"pip install 'crate_mm\[export\]'"):
        export(model, tmp_path / "x", "onnx", images())
    backbone = dict(type="CRATEMAE", arch=MICRO, img_size=32, patch_size=8)
    autoencoder = MaskedAutoencoder(backbone, dict(depth=1, num_heads=3)).eval()
    with pytest.raises(ExportError, match="MaskedAutoencoder has no logits: export its features"):
        export(autoencoder, tmp_path / "x", "torch-export", images())
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_number_is_no_success(tmp_path):
    model = model_of("CRATE")
    torch.nn.init.constant_(model.head.fc.bias, float("nan"))
    with pytest.raises(ExportError, match="differs from the model by nan"):
        export(model, tmp_path / "x", "torchscript", images())
    assert list(tmp_path.iterdir()) == []


def takes(run, batch):
    try:
        return len(run(torch.zeros(batch, 1, 8, 8, dtype=torch.uint8))) == batch
    except (AssertionError, RuntimeError):
        return False


@pytest.mark.parametrize(
    ("options", "said", "batches"),
    [
        ((), "any number at a time; on 2 images, outputs differ by", [1, 2, 5]),
        (("--dynamic", "--batch", 1), "any number at a time", [1, 2, 5]),
        (("--batch", 1), "exactly 1 at a time", [1]),
    ],
)
@pytest.mark.slow
def test_by_the_command(run_tool, debug_checkpoint, tmp_path, options, said, batches):
    out = tmp_path / "digits.pt2"
    args = ("debug", debug_checkpoint, "--to", "torch-export", "--out", out)
    done = run_tool("export", *args, *options)
    assert done.code == 0, done.output
    assert f"it takes uint8 images of 1 x 8 x 8, {said}" in done.last_line
    run = load_program(out, "torch-export")
    assert [batch for batch in (1, 2, 5) if takes(run, batch)] == batches
    pixels = torch.randint(0, 256, (1, 1, 8, 8), dtype=torch.uint8)
    model = init_model("debug", debug_checkpoint)
    with torch.no_grad():
        expected = model(model.data_preprocessor.normalize(pixels))
    torch.testing.assert_close(run(pixels), expected, atol=1e-5, rtol=1e-5)
    if batches == [1]:
        again = run_tool("export", *args)
        assert (again.code, "exists: --force overwrites it" in again.last_line) == (2, True)
        itself = run_tool("export", "debug", out, "--to", "torch-export", "--out", out, "--force")
        assert (itself.code, "is the checkpoint itself: name another file with --out" in itself.last_line) == (2, True)


@pytest.mark.slow
def test_what_an_exporter_raises_is_one_sentence(tmp_path):
    model = model_of("CRATE")
    model.head.register_forward_hook(lambda _module, _inputs, output: output * int(output.sum()))
    for dynamic in (True, "batch"):  # which ends with a fixed batch
        with pytest.raises(ExportError, match="the model cannot be exported: ") as found:
            export(model, tmp_path / "x", "torch-export", images(), dynamic=dynamic)
        assert "\n" not in str(found.value)
    assert list(tmp_path.iterdir()) == []
