"""The benchmarks run and write their results. The measured values are not tested, because machines are noisy."""

import json
from functools import partialmethod

import pytest
import torch

from tests.conftest import ROOT

SMALL = {
    "loader": ["--images", 4, "--width", 60, "--height", 50, "--rounds", 1],
    "train_step": ["--models", "crate_tiny", "vit_tiny", "--img-size", 32, "--batch", 2, "--rounds", 1, "--no-compile"],
    "scaling": [
        *("--img-sizes", 32, "--batches", 1, "--rounds", 1, "--processes", 2, "--start-method", "fork"),
        *("--precisions", "float32"),
    ],
    "end_to_end": ["--config", "{recipe}", "--images", 10, "--batch", 1, "--workers", 1, "--rounds", 1],
    "checkpoint": ["--config", "{recipe}", "--rounds", 1],
    "faults": ["--kills", 1, "--damage", "--fork", "--processes", 2],
    "devices": [],
    "roofline": ["--check", "--configs", "{recipe}", "--img-sizes", 32, "--batches", 2, "--rounds", 1],
}
ROWS = {"loader": 10, "train_step": 6, "scaling": 4, "end_to_end": 4, "devices": 29}

RECIPE = f"""
_base_ = "{ROOT}/configs/crate_tiny_in1k.py"
model = dict(backbone=dict(arch=dict(_delete_=True, embed_dim=48, depth=2, num_heads=3), img_size=32))
train_dataloader = dict(dataset=dict(transforms=[dict(type="DecodeRandomResizedCrop", size=32)]))
"""


def test_every_benchmark_is_run_here():
    shared = {"machine", "operations", "photographs", "runs", "textbook"}
    elsewhere = {"first_minutes"}  # test_first_minutes.py
    assert {path.stem for path in (ROOT / "tools" / "benchmarks").glob("*.py")} - shared - elsewhere == SMALL.keys()


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.slow
def test_a_benchmark_prints_a_table_and_writes_a_json(name, tmp_path, run_tool):
    written = tmp_path / "figures.json"
    recipe = tmp_path / "small.py"
    recipe.write_text(RECIPE)
    args = [recipe if arg == "{recipe}" else arg for arg in SMALL[name]]
    done = run_tool(f"benchmarks/{name}", *args, "--json", written)
    assert done.code == 0, done.output
    figures = json.loads(written.read_text())
    assert {"device", "cores", "threads", "torch", "python", "date", "arguments", "rows"} <= figures.keys()
    assert len(figures["rows"]) == ROWS.get(name, 1)
    for row in figures["rows"]:
        assert all(value > 0 for value in row.values() if isinstance(value, float)), row
        assert str(next(iter(row.values())))[:5] in done.output


@pytest.mark.slow
def test_all_forms_of_inference_are_measured(tmp_path, run_tool, monkeypatch):
    # The tools are forked off: they compile without writing code.
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend="aot_eager"))
    size = ["--models", "crate_tiny", "vit_tiny", "--img-size", "32", "--batch", "2", "--rounds", "1"]
    written = tmp_path / "figures.json"
    args = ["--inference", *size, "--precisions", "float32", "--json", written]
    done = run_tool("benchmarks/train_step", *args, timeout=240)
    assert done.code == 0, done.output
    rows = json.loads(written.read_text())["rows"]
    assert [row["form"] for row in rows] == ["textbook", "plain", "fused", "compiled", "plain", "compiled"]


@pytest.mark.slow
def test_the_slowest_operators_are_listed(tmp_path, run_tool):
    written = tmp_path / "figures.json"
    size = ["--models", "crate_tiny", "--img-size", "32", "--batch", "2", "--steps", "1", "--no-compile"]
    done = run_tool("benchmarks/train_step", "--profile", 5, *size, "--precisions", "bf16", "--json", written)
    assert done.code == 0, done.output
    rows = json.loads(written.read_text())["rows"]
    assert [row["what"] for row in rows[:3]] == ["the step", "all kernels", "the host"]
    assert (len(rows), sorted(rows[3:], key=lambda row: -row["ms_a_step"])) == (8, rows[3:])


def test_an_unknown_model_is_refused(run_tool):
    finished = run_tool("benchmarks/train_step", "--models", "crate_huge")
    assert (finished.code, "crate_huge" in finished.last_line) == (2, True)
