"""What a user imports, in a clone and from an installed wheel."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from crate_mm import Predictor, get_model, init_model, list_models
from crate_mm.datasets import Digits
from crate_mm.engine import read_checkpoint
from crate_mm.models import ARCHS

ROOT = Path(__file__).resolve().parents[1]


def test_models_by_name():
    assert list_models() == [f"crate_{arch}" for arch in ARCHS] + ["vit_tiny", "vit_small"]
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


def test_class_names_must_fit():
    with pytest.raises(ValueError, match="2 class names for a head of 3 classes"):
        Predictor(get_model("crate_tiny", num_classes=3, img_size=32), class_names=["a", "b"])


def test_the_installed_wheel_works_outside_a_clone(tmp_path, debug_checkpoint):
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, ROOT], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", tmp_path / "site", wheel], check=True)
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path / "site")!r})
import crate_mm, numpy
assert crate_mm.__file__.startswith({str(tmp_path)!r}), crate_mm.__file__
from crate_mm.engine import CONFIGS, load_config
assert str(CONFIGS).startswith({str(tmp_path)!r}), CONFIGS
load_config("crate_base_in1k")
model = crate_mm.init_model("debug", {str(debug_checkpoint)!r})
print(len(crate_mm.Predictor(model)(numpy.zeros((8, 8), numpy.uint8))[0]))
"""
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "5\n", done.stderr
