"""Train, resume, distribute, measure, publish, load and test the two custom tasks in this folder."""

import csv
import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

from crate_mm import init_model
from crate_mm.registry import BACKBONES
from crate_mm.testing import check_backbone

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
pytestmark = pytest.mark.slow  # trainings


def tool(name, *arguments):
    """Run a tool in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        try:
            runpy.run_path(str(ROOT / "tools" / f"{name}.py"), run_name="__main__")
        except SystemExit as end:
            assert not end.code, end.code


def weights(path):
    return torch.load(path, weights_only=False)["state_dict"]


def assert_equal(ours, theirs, atol=0):
    torch.testing.assert_close(dict(ours), dict(theirs), rtol=0, atol=atol)


class Trained:
    def __init__(self, name, folder):
        self.name, self.folder = name, folder
        self.config, self.work = HERE / f"{name}_config.py", folder / "work"
        self.last, self.published = self.work / "epoch_2.pth", folder / "model.safetensors"
        tool("train", self.config, "--work-dir", self.work)
        tool("publish", self.last, self.published)
        self.result = json.loads((self.work / "result.json").read_text())


@pytest.fixture(scope="module", params=["distillation", "language"])
def trained(request, tmp_path_factory):
    return Trained(request.param, tmp_path_factory.mktemp(request.param))


def test_resumes_in_the_middle(trained, tmp_path):
    tool("train", trained.config, "--work-dir", tmp_path, "--resume", trained.work / "epoch_1.pth")
    assert_equal(weights(tmp_path / "epoch_2.pth"), weights(trained.last))


def test_is_measured(trained, tmp_path):
    arguments = ("--num-images", 20, "--out", tmp_path)
    tool("analyze", "layers", trained.config, trained.published, *arguments)
    with open(tmp_path / "layers.csv") as file:
        rates = [float(row["mean"]) for row in csv.DictReader(file) if row["measure"] == "rc_half"]
    assert len(rates) == 2
    assert min(rates) > 0


def test_published_gives_the_same_outputs(trained):
    published, ours = init_model(None, str(trained.published)), init_model(None, str(trained.last))
    zeros = ours.example()["inputs"]
    inputs = torch.randint(256, zeros.shape).to(zeros.dtype)
    with torch.no_grad():
        assert torch.equal(published(inputs=inputs), ours(inputs=inputs))
    assert_equal(published.state_dict(), weights(trained.last))


def test_is_tested(trained, tmp_path):
    tool("test", trained.config, trained.published, "--json", tmp_path / "a.json", "--work-dir", tmp_path)
    metric = trained.result["headline"]["metric"]
    assert json.loads((tmp_path / "a.json").read_text())[metric] == trained.result["last"][metric]


def test_two_processes_take_the_same_steps(tmp_path, run_processes):
    """Test the language model only: tests/models/test_task.py has a teacher on several processes."""
    options = ["optim_wrapper.optimizer." + text for text in ("type=SGD", "lr=0.1", "weight_decay=0.")]
    options.append("train_cfg.max_epochs=1")
    for processes in (1, 2):
        args = (HERE / "language_config.py", "--work-dir", tmp_path / str(processes), "--cfg-options", *options)
        done = run_processes("train", *args, processes=processes)
        assert done.code == 0, done.output
    assert_equal(weights(tmp_path / "1" / "epoch_1.pth"), weights(tmp_path / "2" / "epoch_1.pth"), atol=1e-5)


@pytest.mark.parametrize("trained", ["distillation"], indirect=True)
def test_probe_starts_from_the_teacher(trained, tmp_path):
    arguments = ("--load-from", trained.published, "--linear-probe", "--work-dir", tmp_path)
    tool("train", ROOT / "configs/debug.py", *arguments, "--cfg-options", "train_cfg.max_epochs=1")
    ours, probe = weights(trained.last), weights(tmp_path / "epoch_1.pth")
    names = [key.removeprefix("backbone.") for key in probe if key.startswith("backbone.")]
    assert_equal({name: probe[f"backbone.{name}"] for name in names}, {n: ours[f"teacher.{n}"] for n in names})
    assert any(not torch.equal(ours[f"teacher.{n}"], ours[f"backbone.{n}"]) for n in names)


@pytest.mark.parametrize("trained", ["language"], indirect=True)
def test_causal_backbone(trained):
    backbone = BACKBONES.build(dict(type="ByteCRATE")).eval()
    ids = torch.randint(256, (2, 64))
    check_backbone(backbone, ids)
    other = ids.clone()
    other[:, 40:] = torch.randint(256, (2, 24))
    torch.testing.assert_close(backbone(ids)[:, :40], backbone(other)[:, :40])
