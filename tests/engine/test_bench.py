"""Measured steps are those of training and of inference."""

import json
import os
import signal
import time

import pytest
import torch

from crate_mm.engine import load_config
from crate_mm.extras.bench import MIN_STEPS, WARM_UP, bench, random_batch
from crate_mm.models import ImageClassifier
from crate_mm.registry import MODELS
from tests.conftest import ROOT, start


@pytest.fixture
def calls(monkeypatch):
    """The modes in which the model is called, and whether autocast is on, step by step."""
    found = []
    real = ImageClassifier.forward

    def forward(self, inputs, *args, mode="tensor", **batch):
        found.append((mode, self.training, len(inputs), torch.is_autocast_enabled("cpu")))
        return real(self, inputs, *args, mode=mode, **batch)

    monkeypatch.setattr(ImageClassifier, "forward", forward)
    return found


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize(("what", "mode", "training"), [("training", "loss", True), ("inference", "tensor", False)])
def test_steps_are_whole(calls, what, mode, training, amp):
    found = bench(load_config("debug"), what, batch=6, seconds=0.0001, amp=amp)
    assert {call[:3] for call in calls} == {(mode, training, 6)}
    if training:
        assert {call[3] for call in calls} == {amp}
    assert len(calls) == WARM_UP + found.steps
    assert found.steps == MIN_STEPS
    assert 0 < found.least <= found.seconds <= found.most
    assert found.images_per_second == pytest.approx(6 / found.seconds)


def test_training_takes_steps(monkeypatch):
    built = []
    real = MODELS.build
    monkeypatch.setattr(MODELS, "build", lambda *args, **kwargs: built.append(real(*args, **kwargs)) or built[-1])
    torch.manual_seed(0)
    bench(load_config("debug"), "training", batch=4, seconds=0.0001)
    after = next(model for model in built if isinstance(model, ImageClassifier))
    torch.manual_seed(0)
    before = real(load_config("debug").model)
    moved = [not torch.equal(one, other) for one, other in zip(after.parameters(), before.parameters())]
    assert all(moved)


def test_the_batch_is_of_the_models_images():
    batch = random_batch(MODELS.build(load_config("debug").model), 7)
    assert (batch["inputs"].shape, batch["inputs"].dtype) == ((7, 1, 8, 8), torch.uint8)
    assert 0 <= batch["labels"].min() <= batch["labels"].max() < 10


PEAK = """
import torch
from crate_mm.extras import bench
torch.ones(100 * 2**20)  # 400 MiB, given back at once
high, known = bench.peak_bytes(), bench.reset_peak()
low = bench.peak_bytes()
large = torch.ones(50 * 2**20)  # 200 MiB
print(known, high, low, bench.peak_bytes())
"""


@pytest.mark.slow
def test_the_peak_is_of_what_is_measured(tmp_path, run_tool):
    """Memory that was given back before does not count, memory that is taken does."""
    (tmp_path / "peak.py").write_text(PEAK)
    known, *peaks = run_tool(str(tmp_path / "peak")).output.split()
    if known != "True":
        pytest.skip("the system does not tell")
    high, low, end = map(int, peaks)
    assert high - low > 300 * 2**20
    assert 150 * 2**20 < end - low < 300 * 2**20


def test_other_tasks_and_what_is_none(tmp_path):
    arch = dict(embed_dim=24, depth=1, num_heads=3)
    cfg = load_config("crate_mae_mini_fashion_mnist", {"model.backbone.arch": arch})
    assert bench(cfg, "training", 2, 0.0001).steps == MIN_STEPS
    with pytest.raises(ValueError, match="unknown measurement 'speed': choose training, inference"):
        bench(cfg, "speed")


@pytest.mark.slow
def test_the_command(run_tool, tmp_path):
    out = tmp_path / "speed.json"
    done = run_tool("bench", "debug", "--batch", 4, "--seconds", 1, "--json", out)
    assert done.code == 0, done.output
    assert done.last_line == f"wrote {out}"
    written = json.loads(out.read_text())
    assert [row["what"] for row in written["measured"]] == ["inference", "training"]
    assert written["parameters"] == 16098
    for row, line in zip(written["measured"], done.output.splitlines()[1:]):
        assert line.split()[:3] == [row["what"], f"{row['images_per_second']:.1f}", "images/s,"]
    for args, sentence in (
        (("transfer/pets",), "error: the config defines no model"),
        (("debug", "--json", "no/x.json"), "error: cannot write no/x.json"),
        (("debug", "--batch", "-1"), "expected a positive integer"),
    ):
        done = run_tool("bench", *args, cwd=tmp_path)
        assert (done.code, sentence in done.last_line) == (2, True), done.output


@pytest.mark.gpu
def test_on_a_gpu():
    found = bench(load_config("debug", {"compile_blocks": False}), "training", 64, 0.1, amp=True)
    assert 0 < found.memory < 2**30


@pytest.mark.slow
def test_ctrl_c_ends_it(tmp_path):
    log = tmp_path / "bench.out"
    process = start(ROOT / "tools" / "bench.py", ("debug", "--seconds", 100), log, tmp_path, {})
    for _ in range(600):
        if log.exists() and "PyTorch" in log.read_text():
            break
        time.sleep(0.1)
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGINT)
    process.join(30)
    assert process.exitcode == 130
    assert log.read_text().splitlines()[-1] == "interrupted"
