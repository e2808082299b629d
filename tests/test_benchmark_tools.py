"""The benchmarks run and write their results. The measured values are not tested, because machines are noisy."""

import json
from functools import partialmethod

import pytest
import torch

from tests.conftest import ROOT

SMALL = {
    "loader": ["--images", 4, "--width", 60, "--height", 50, "--rounds", 1],
    "train_step": ["--models", "crate_tiny", "vit_tiny", "--img-size", 32, "--batch", 2, "--rounds", 1, "--no-compile"],
    "inference": ["--models", "crate_tiny", "vit_tiny", "--img-size", 32, "--batch", 2, "--rounds", 1, "--no-compile"],
    "scaling": [
        *("--img-sizes", 32, "--batches", 1, "--rounds", 1, "--processes", 2, "--start-method", "fork"),
        *("--precisions", "float32"),
    ],
    "end_to_end": ["--config", "{recipe}", "--images", 10, "--batch", 1, "--workers", 1, "--rounds", 1],
    "checkpoint": ["--config", "{recipe}", "--rounds", 1],
    "generation": ["--models", "tost", "gpt2", "--lengths", 8, 16, "--rounds", 1, "--tokens", 32],
    "faults": ["--kills", 1, "--damage", "--fork", "--processes", 2],
    "devices": [],
    "roofline": ["--check", "--configs", "{recipe}", "--img-sizes", 32, "--batches", 2, "--rounds", 1],
    "profile_step": ["--model", "crate_tiny", "--img-size", 32, "--batch", 2, "--steps", 1, "--rows", 5],
}
ROWS = {"loader": 13, "train_step": 6, "inference": 8, "scaling": 4, "end_to_end": 4, "devices": 29, "profile_step": 8}
ROWS["generation"] = 4

RECIPE = f"""
_base_ = "{ROOT}/configs/crate_tiny_in1k.py"
model = dict(backbone=dict(arch=dict(_delete_=True, embed_dim=48, depth=2, num_heads=3), img_size=32))
train_dataloader = dict(dataset=dict(transforms=[dict(type="DecodeRandomResizedCrop", size=32)]))
"""


def test_every_benchmark_is_run_here():
    shared = {"forms", "machine", "operations", "photographs", "runs", "textbook"}
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
def test_compiled_forms_are_measured(tmp_path, run_tool, monkeypatch):
    # The tools are forked off: they compile without writing code.
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend="aot_eager"))
    args = ["--models", "crate_tiny", "--img-size", "32", "--batch", "2", "--rounds", "1", "--precisions", "float32"]
    written = tmp_path / "figures.json"
    done = run_tool("benchmarks/inference", *args, "--json", written, timeout=240)
    assert done.code == 0, done.output
    forms = [row["form"] for row in json.loads(written.read_text())["rows"]]
    assert forms == ["textbook", "plain", "fused", "compiled"]


def test_an_unknown_model_is_refused(run_tool):
    finished = run_tool("benchmarks/inference", "--models", "crate_huge")
    assert finished.code == 2
    assert "crate_huge" in finished.last_line
