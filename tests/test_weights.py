"""The weights that the package contains: their figures, and their names in every function and tool."""

import gzip
import json
import re
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torchvision.transforms.functional import normalize

from crate_mm import Predictor, get_model, init_model, list_models
from crate_mm.checkpoints import open_checkpoint
from crate_mm.checkpoints.remote import ensure_local
from crate_mm.checkpoints.zoo import PUBLISHED, packaged
from crate_mm.config import load_config
from crate_mm.datasets.sources import Digits
from tests.conftest import ROOT

DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # of the package dataset-fashion-mnist
CARD = (ROOT / "crate_mm/weights/README.md").read_text()
ROW = r"^\| `(\w+)` \| [^|]+ \| ([\d,]+) \| ([\d.]+) \| (\d+), (\d+) \|$"
ROWS = {name: row for name, *row in re.findall(ROW, CARD, re.MULTILINE)}


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    def refuse(*args):
        raise AssertionError(f"a connection to {args[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def accuracy(name: str, images, labels) -> float:
    classes = open_checkpoint(name).class_names
    predictions = Predictor(name, batch_size=500)(images)
    return 100 * np.mean([best[0] == classes[label] for (best, *_), label in zip(predictions, labels)])


def test_the_digits_figure_is_that_of_the_file():
    test = Digits("test")
    images, labels = zip(*(test[index] for index in range(len(test))))
    figure = accuracy("crate_mini_digits", list(images), labels)
    assert figure == pytest.approx(float(ROWS["crate_mini_digits"][1]), abs=0.23)  # an image, if sums round otherwise


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
@pytest.mark.slow
def test_the_fashion_mnist_figure_is_that_of_the_file():
    files = (DEBIAN / f"t10k-{name}-ubyte.gz" for name in ("images-idx3", "labels-idx1"))
    images, labels = (np.frombuffer(gzip.decompress(file.read_bytes()), np.uint8) for file in files)
    images, labels = images[16:].reshape(-1, 28, 28, 1), labels[8:]
    figure = accuracy("crate_micro_fashion_mnist", images, labels)
    assert figure == pytest.approx(float(ROWS["crate_micro_fashion_mnist"][1]), abs=0.05)  # five of 10,000 images


@pytest.mark.parametrize("name", packaged())
def test_a_file_is_of_its_config_and_card(name):
    file, cfg = PUBLISHED[name].file, load_config(name)
    assert file.stat().st_size < 1e6
    manifest = json.loads(safe_open(file, "pt").metadata()["crate_mm"])
    assert manifest["model"] == json.loads(json.dumps(cfg.model.to_dict()))
    assert manifest["test_transforms"] == [{"type": "Resize", "size": [manifest["model"]["backbone"]["img_size"]] * 2}]
    parameters, figure, seed, epoch = ROWS[name]
    assert f"{sum(p.numel() for p in init_model(None, name).parameters()):,}" == parameters
    assert f"{manifest['metrics']['top1']:.2f}" == figure
    assert (manifest["seed"], manifest["epoch"]) == (int(seed), int(epoch)) == (0, cfg.train_cfg.max_epochs)
    assert f"configs/{name}.py" in manifest["training"]["command"]
    assert re.fullmatch("[0-9a-f]{40}", manifest["training"]["commit"])


@pytest.mark.parametrize("name", packaged())
def test_every_function_gives_the_same_model(name):
    model = init_model(None, name)
    images = torch.rand(3, *model.backbone.input_spec.shape, generator=torch.Generator().manual_seed(0))
    logits = model(images)
    assert name in list_models()
    for other in (get_model(name, pretrained=True), init_model(name, name), Predictor(name).model):
        assert torch.equal(other(images), logits)
    features = get_model(name, pretrained=True, num_classes=0)
    assert torch.equal(model.head.fc(features(images)), logits)
    new = get_model(name)
    assert new(images).shape == logits.shape
    assert not torch.equal(new(images), logits)


@pytest.mark.parametrize("name", packaged())
def test_timm_gives_the_same_model(name):
    timm = pytest.importorskip("timm")
    import crate_mm.timm  # noqa: F401  registers the names

    model = timm.create_model(name, pretrained=True).eval()
    size, mean, std = (model.default_cfg[key] for key in ("input_size", "mean", "std"))
    images = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    ours = init_model(None, name)
    logits = ours(**ours.data_preprocessor({"inputs": images}))
    torch.testing.assert_close(model(normalize(images / 255, mean, std)), logits)
    assert timm.create_model(name, pretrained=True, num_classes=3)(torch.zeros(1, *size)).shape == (1, 3)
    assert not torch.equal(timm.create_model(name)(torch.zeros(1, *size)), model(torch.zeros(1, *size)))


def test_a_file_of_the_name_is_meant_and_a_folder_is_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "crate_mini_digits").mkdir()
    assert ensure_local("crate_mini_digits") == PUBLISHED["crate_mini_digits"].file
    (tmp_path / "crate_mini_digits").rmdir()
    (tmp_path / "crate_mini_digits").write_bytes(b"")
    assert ensure_local("crate_mini_digits") == Path("crate_mini_digits")


COMMANDS = {  # each opens a checkpoint by another function
    "predict": ["crate_mini_digits", "digit.png"],
    "test": ["crate_mini_digits", "crate_mini_digits", "--work-dir", "test"],
    "publish": ["crate_mini_digits", "out.safetensors"],
    "demo": [],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.slow
def test_a_command_takes_the_name(command, run_tool, tmp_path):
    image, label = Digits("test")[0]
    image.save(tmp_path / "digit.png")
    done = run_tool(command, *COMMANDS[command], cwd=tmp_path)
    assert done.code == 0, done.output
    if command == "predict":
        assert done.output.startswith(f"digit.png: {label} ")
    if command == "demo":
        page = (tmp_path / "crate_mm_demo.html").read_text()
        assert done.last_line == f"open {(tmp_path / 'crate_mm_demo.html').as_uri()} in a browser"
        assert "crate-mm report crate_mini_digits random crate_mini_digits --out crate_mm_demo.html" in page


@pytest.mark.slow
def test_publish_keeps_what_the_runs_result_file_holds(run_tool, debug_checkpoint, tmp_path):
    done = run_tool("publish", debug_checkpoint, tmp_path / "x.safetensors")
    assert done.code == 0, done.output
    result = json.loads((debug_checkpoint.parent / "result.json").read_text())
    manifest = json.loads(safe_open(tmp_path / "x.safetensors", "pt").metadata()["crate_mm"])
    assert manifest["metrics"] == {key: value for key, value in result["last"].items() if key != "epoch"}
    assert manifest["training"]["versions"] == result["versions"]
