"""What a user imports, in a clone and from an installed wheel."""

import copy
import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from crate_mm import Predictor, get_model, init_model, list_models
from crate_mm.checkpoints import open_checkpoint
from crate_mm.checkpoints.publish import publish
from crate_mm.datasets import Digits
from crate_mm.engine import Runner, load_config, read_checkpoint
from crate_mm.models import ALPHA_ARCHS, ARCHS, SEGMENTATION_ARCHS, TOST_ARCHS, VIT_ARCHS
from crate_mm.registry import MODELS

ROOT = Path(__file__).resolve().parents[1]


def test_models_by_name():
    families = dict(crate=[*ARCHS, *SEGMENTATION_ARCHS], crate_alpha=ALPHA_ARCHS, tost=TOST_ARCHS, vit=VIT_ARCHS)
    assert set(list_models()) >= {f"{family}_{arch}" for family, archs in families.items() for arch in archs}
    assert list_models()[: len(ARCHS)] == [f"crate_{arch}" for arch in ARCHS]
    pretrained = ["crate_alpha_base", "crate_alpha_large", "crate_mini_digits", "crate_micro_fashion_mnist"]
    assert list_models(pretrained=True) == pretrained
    assert get_model("vit_tiny", num_classes=7, img_size=32)(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    model = get_model("crate_tiny", num_classes=7, img_size=(16, 32), patch_size=8, in_channels=1, pool="mean")
    assert not model.training
    assert model(torch.zeros(2, 1, 16, 32)).shape == (2, 7)
    with pytest.raises(ValueError, match="unknown model 'crate_tny': did you mean crate_tiny"):
        get_model("crate_tny")


def test_init_model_loads_weights_and_class_names(debug_checkpoint):
    model = init_model("debug", debug_checkpoint)
    saved = read_checkpoint(debug_checkpoint)["state_dict"]
    assert all(torch.equal(value, saved[key]) for key, value in model.state_dict().items())
    assert not model.training
    assert model.class_names == list("0123456789")
    with pytest.raises(ValueError, match="does not exist"):
        init_model("debug", "nowhere.pth")


def test_predictions_are_the_models(debug_checkpoint, tmp_path):
    model = init_model("debug", debug_checkpoint)
    images = [Digits("test")[i][0] for i in range(5)]
    images[1].save(tmp_path / "one.png")
    mixed = [images[0], tmp_path / "one.png", np.asarray(images[2]), np.asarray(images[3])[..., None], images[4]]
    predictions = Predictor(model, topk=3, batch_size=2)(mixed)
    pixels = torch.stack([torch.from_numpy(np.array(image))[None] for image in images])
    scores = model((pixels / 255 - 0.5) / 0.5).softmax(-1)
    for prediction, row in zip(predictions, scores):
        assert [name for name, _ in prediction] == [str(c) for c in row.topk(3).indices.tolist()]
        assert [score for _, score in prediction] == pytest.approx(row.topk(3).values.tolist(), rel=1e-4)
    assert Predictor(model)(images[0])[0][:3] == Predictor(model, topk=3)(images[0])[0]


def test_rgb_models_take_any_image_and_name_imagenet_classes():
    predict = Predictor(get_model("crate_tiny", img_size=32))
    (prediction,) = predict(Image.new("L", (50, 40)))
    assert len(prediction) == 5
    assert prediction[0][0] in predict.class_names
    assert predict.class_names[0] == "tench"


def test_images_of_another_shape():
    (prediction,) = Predictor(get_model("crate_tiny", num_classes=3, img_size=(32, 64)))(np.zeros((9, 7, 3), np.uint8))
    assert [name for name, _ in sorted(prediction)] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4)), "image 0 is an array of float64"),
        (np.zeros((3, 4, 4), np.uint8), r"image 0 is an array of uint8 of shape \(3, 4, 4\)"),
        (42, "image 0 is int: expected a path"),
        (__file__, "image 0 cannot be read"),
        ("nowhere.png", "image 0 cannot be read: .*No such file"),
    ],
)
def test_what_is_no_image(image, message):
    with pytest.raises(ValueError, match=message):
        Predictor(get_model("crate_tiny", num_classes=3, img_size=32))([image])


@pytest.mark.slow
def test_a_published_file_predicts_as_the_checkpoint_was_tested(debug_checkpoint, tmp_path, run_tool):
    """It carries model, normalisation, class names and the transforms of the test."""
    rows = tmp_path / "rows.csv"
    options = ("--work-dir", tmp_path / "w", "--out", rows)
    assert run_tool("test", "debug", debug_checkpoint, *options).code == 0
    tested = [row["top1"] for row in csv.DictReader(rows.open())]
    publish(open_checkpoint(debug_checkpoint), tmp_path / "x.safetensors")
    tested = tested[:40]
    images = [Digits("test")[i][0] for i in range(len(tested))]
    for file in (debug_checkpoint, tmp_path / "x.safetensors"):
        predict = Predictor(init_model(None, file))
        assert [prediction[0][0] for prediction in predict(images)] == tested


def test_transforms_that_a_file_names_are_data(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr("crate_mm.inference.transforms.print_log", lambda text, *_: told.append(text))
    backbone = dict(type="CRATE", arch=dict(embed_dim=16, depth=1, num_heads=2), img_size=32)
    described = dict(type="ImageClassifier", backbone=backbone, head=dict(type="LinearHead", num_classes=3))
    weights = MODELS.build(copy.deepcopy(described)).state_dict()

    def predictor(**meta):
        contents = {"meta": {"model": described, **meta}, "state_dict": weights}
        torch.save(contents, tmp_path / "x.pth")
        return Predictor(init_model(None, tmp_path / "x.pth"))

    small = predictor(
        test_transforms=[dict(type="Resize", size=[32, 32]), dict(type="Grayscale", num_output_channels=3)]
    )
    assert [type(t).__name__ for t in small.transforms.transforms] == ["Resize", "Grayscale"]
    for wrong, message in (
        ([dict(type="os.system", command="true")], "the transform 'os.system', which is not registered"),
        ([dict(type="CenterCrop", size=10**9)], "was tested with transforms of size 1000000000: give transforms"),
        ([dict(type="Resize", size=32, interpolation="no")], "was tested with transforms that do not build"),
        ("Resize", "expected a list of dicts of plain data as its meta.test_transforms, got 'Resize'"),
    ):
        with pytest.raises(ValueError, match=message):
            predictor(test_transforms=wrong)
    assert told == []
    predictor()
    assert told[0].startswith("the model's test transforms are unknown: images are resized to 36")


@pytest.mark.slow
def test_a_checkpoint_is_read_once(debug_checkpoint, monkeypatch, tmp_path):
    reads = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: reads.append(args[0]) or load(*args, **kwargs))
    init_model(None, debug_checkpoint)
    assert len(reads) == 1
    cfg = load_config("debug", {"train_cfg.max_epochs": 1})
    cfg.work_dir, cfg.load_from, cfg.default_hooks.checkpoint = str(tmp_path / "a"), str(debug_checkpoint), None
    Runner.from_cfg(cfg).train()
    assert len(reads) == 2
    (tmp_path / "b").mkdir()
    shutil.copy(debug_checkpoint, tmp_path / "b")
    cfg.work_dir, cfg.load_from, cfg.resume = str(tmp_path / "b"), None, True
    Runner.from_cfg(cfg).train()
    assert len(reads) == 3


def test_class_names_must_fit():
    with pytest.raises(ValueError, match="2 class names for a head of 3 classes"):
        Predictor(get_model("crate_tiny", num_classes=3, img_size=32), class_names=["a", "b"])


def test_predictions_in_half_the_bits():
    """Close to those in float32, and other."""
    model = get_model("crate_tiny", num_classes=5, img_size=32)
    torch.nn.init.normal_(model.head.fc.weight, std=0.02)
    image = np.random.RandomState(0).randint(0, 256, (32, 32, 3)).astype(np.uint8)
    exact, low = (dict(Predictor(model, dtype=dtype)(image)[0]) for dtype in ("float32", "bfloat16"))
    assert low == pytest.approx(exact, abs=0.02)
    assert low != exact
    with pytest.raises(ValueError, match="dtype must be 'float32', 'bfloat16' or 'float16', got 'int8'"):
        Predictor(model, dtype="int8")


@pytest.mark.slow
def test_the_installed_wheel_works_outside_a_clone(tmp_path, debug_checkpoint, run_tool):
    # What pip calls, in a process of its own, to build a wheel.
    (tmp_path / "build_wheel.py").write_text("import setuptools.build_meta as b, sys; b.build_wheel(sys.argv[1])")
    done = run_tool(str(tmp_path / "build_wheel"), tmp_path)
    assert done.code == 0, done.output
    (wheel,) = tmp_path.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--no-deps", "--target", tmp_path / "site", wheel], check=True)
    code = f"""
import os, runpy, sys
sys.path.insert(0, {str(tmp_path / "site")!r})
import crate_mm, numpy
assert crate_mm.__file__.startswith({str(tmp_path)!r}), crate_mm.__file__
from crate_mm.engine import CONFIGS, load_config
assert str(CONFIGS).startswith({str(tmp_path)!r}), CONFIGS
load_config("crate_base_in1k")
crate_mm.get_model("crate_mini_digits", pretrained=True)
model = crate_mm.init_model("debug", {str(debug_checkpoint)!r})
print(len(crate_mm.Predictor(model)(numpy.zeros((8, 8), numpy.uint8))[0]), flush=True)
for arguments in (
    ("train", "debug", "--work-dir", "w", "--cfg-options", "train_cfg.max_epochs=1"),
    ("report", "debug", "w/epoch_1.pth", "--num-images", "10", "--out", "w/report.html"),
):
    child = os.fork()  # as python -m crate_mm, but for what is loaded already
    if not child:
        os.dup2(2, 1)
        sys.argv[1:] = arguments
        runpy.run_module("crate_mm", run_name="__main__", alter_sys=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "5\n"), done.stderr
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    assert "choose({" in (tmp_path / "w" / "report.html").read_text()  # its scripts are in the wheel
    script = tmp_path / "site" / "bin" / "crate-mm"
    assert subprocess.run([sys.executable, script, "--help"], env=env, capture_output=True).returncode == 0
