"""Train, resume, distribute, measure, publish, load and test the four custom parts in this folder."""

import csv
import itertools
import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

from crate_mm import init_model
from crate_mm.models import TokenLayout
from crate_mm.registry import BACKBONES
from crate_mm.testing import check_backbone, check_layer

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


def softmax(scores):
    return torch.softmax(scores / 4, dim=-1)  # the heads have width 16


class Trained:
    def __init__(self, name, folder):
        self.name, self.folder = name, folder
        self.config, self.work = HERE / f"{name}_config.py", folder / "work"
        self.last, self.published = self.work / "epoch_2.pth", folder / "model.safetensors"
        tool("train", self.config, "--work-dir", self.work)
        tool("publish", self.last, self.published)
        self.result = json.loads((self.work / "result.json").read_text())


@pytest.fixture(scope="module", params=["attention_only", "contraction", "distillation", "language"])
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


@pytest.mark.parametrize("trained", ["contraction"], indirect=True)
def test_contraction(trained):
    """Compare NewcomerCBSA with its equations, head by head."""
    backbone = init_model(None, str(trained.last)).backbone
    check_layer(backbone.layers[0], embed_dim=48)
    check_backbone(backbone)
    operator = backbone.double().layers[0].compress
    x = torch.randn(2, 17, 48, dtype=torch.float64)  # the CLS token, then 4 x 4 patches
    average = x.new_zeros(4, 17)  # each row averages 2 x 2 patches
    for row, column in itertools.product(range(4), repeat=2):
        average[row // 2 * 2 + column // 2, 1 + 4 * row + column] = 1 / 4
    updates, similarities = [], []
    heads = zip(operator.proj.weight.mT.chunk(3, dim=1), operator.step_rep, operator.step_x, strict=True)
    for U, step_rep, step_x in heads:
        w = x @ U
        q = average @ w
        A = softmax(q @ w.mT)
        r = q + step_rep * A @ w
        updates.append(step_x * A.mT @ softmax(r @ r.mT) @ r)
        similarities.append(A.mT @ A)
    layout = TokenLayout(prefix=1, rows=4, columns=4)
    expected = torch.cat(updates, dim=-1) @ operator.out.weight.mT + operator.out.bias
    similarity = operator.maps(operator.proj(x), layout)["similarity"].values
    torch.testing.assert_close(operator(x, layout), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(similarity, torch.stack(similarities, dim=1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("trained", ["attention_only"], indirect=True)
def test_attention_only(trained):
    """Compare NewcomerAoT with Z' = Z + MSSA(LN(Z)), head by head."""
    backbone = init_model(None, str(trained.last)).backbone
    check_backbone(backbone)
    images = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    z = backbone.double().embedding(images)
    for layer in backbone.layers:
        x = layer.norm_compress(z)
        heads = [x @ U for U in layer.compress.proj.weight.mT.chunk(3, dim=1)]
        z = z + layer.compress.out(torch.cat([softmax(w @ w.mT) @ w for w in heads], dim=-1))
    torch.testing.assert_close(backbone(images), z, rtol=0, atol=1e-12)
