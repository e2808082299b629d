"""Every family is exported and traced, and the result takes batches of any size; images of any size where it can."""

import io
import warnings

import pytest
import torch

from crate_mm.models import ToST
from tests.checkpoints.test_export import needs_onnx_of_any_batch
from tests.models.test_families import FAMILIES, classifier, pixels

BATCHES = (1, 3, 150)  # at 150 a CRATE that is not exported takes the other of its two forms:
assert 3 * 17 < 2 * 48 <= 150 * 17
BATCH = torch.export.Dim("batch", min=1, max=1024)
SIZES = {2: 8 * torch.export.Dim("rows", min=2, max=64), 3: 8 * torch.export.Dim("columns", min=2, max=64)}


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(
    scope="module",  # AoT's layer is a part of CRATE's
    params=[f if f == "CRATE" else pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES if f != "AoT"],
)
def model(request):
    model = classifier(request.param)
    torch.nn.init.normal_(model.head.fc.weight)
    return model.requires_grad_(False)


def dimensions_of(model):
    """The batch, and height and width where positions are computed."""
    return {0: BATCH, **(SIZES if isinstance(model.backbone, ToST) else {})}


def exported(model, dimensions):
    return torch.export.export(model, (pixels(),), dynamic_shapes={"inputs": dimensions})


@pytest.fixture(scope="module")
def program(model):
    return exported(model, dimensions_of(model))


def check(function, model, sizes=((32, 32),)):
    for size in sizes:
        for batch in BATCHES:
            images = pixels(batch, size)
            torch.testing.assert_close(function(images), model(images), atol=1e-4, rtol=1e-4)


def sizes_of(model):
    return ((32, 32), (40, 64), (16, 16)) if len(dimensions_of(model)) > 1 else ((32, 32),)


def test_an_exported_model_takes_any_batch(model, program):
    check(program.module(), model, sizes_of(model))


def test_a_traced_model_takes_any_batch(model):
    check(torch.jit.trace(model, pixels()), model)


@pytest.mark.slow
def test_a_fused_model_is_exported_too():
    model = classifier("CRATE").requires_grad_(False)
    model.backbone.fuse()
    check(exported(model, {0: torch.export.Dim.AUTO}).module(), model)


@pytest.mark.slow
def test_a_table_of_positions_has_one_size():
    """No export pretends that it has not."""
    with pytest.raises(Exception, match="Constraints violated"):
        exported(classifier("CRATE").requires_grad_(False), {0: BATCH, **SIZES})


def onnx_session(program):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    file = io.BytesIO()
    torch.onnx.export(program, (pixels(),), dynamo=True, verbose=False).save(file)
    session = onnxruntime.InferenceSession(file.getvalue())
    (entry,) = session.get_inputs()
    return lambda images: torch.from_numpy(session.run(None, {entry.name: images.numpy()})[0])


@pytest.mark.slow
@needs_onnx_of_any_batch
def test_onnx_takes_any_batch(model, program):
    check(onnx_session(program), model, sizes_of(model))
