"""Checkpoints as the Runner writes them and reads them back."""

import json
import os
from pathlib import Path

import pytest
import torch

from crate_mm.engine import Runner, load_config
from tests.training import (
    assert_identical,
    debug_config,
    train,
)


@pytest.mark.slow
def test_averaged_weights_are_saved_and_evaluated(tmp_path):
    plain = train(tmp_path / "plain", train_cfg__max_epochs=1)
    averaged = train(tmp_path / "ema", train_cfg__max_epochs=1, ema_momentum=0.1)
    raw = {k.removeprefix("module."): v for k, v in averaged["ema_state_dict"].items() if k.startswith("module.")}
    assert_identical(dict(raw), dict(plain["state_dict"]))  # MMEngine swaps the two names in the file
    assert not torch.equal(averaged["state_dict"]["head.fc.weight"], plain["state_dict"]["head.fc.weight"])
    (scalars,) = (tmp_path / "ema").glob("*/vis_data/scalars.json")
    during = json.loads(scalars.read_text().splitlines()[-1])
    for ema_momentum in (None, 0.1):
        cfg = debug_config(ema_momentum=ema_momentum)
        cfg.work_dir, cfg.load_from = str(tmp_path / f"test{ema_momentum}"), str(tmp_path / "ema" / "epoch_1.pth")
        assert Runner.from_cfg(cfg).test()["eval/loss"] == pytest.approx(during["eval/loss"], rel=1e-6)


def test_checkpoints_are_written_in_one_piece(tmp_path, monkeypatch):
    written, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda part, path: (written.append(path), replace(part, path)))
    train(tmp_path, train_cfg__max_epochs=1)
    files = {p for p in tmp_path.iterdir() if p.is_file() and p.suffix != ".py" and p.name != ".lock"}
    assert {Path(path) for path in written if Path(path).suffix != ".py"} == files


@pytest.mark.slow
def test_a_different_model_of_the_same_shapes_is_warned_of(tmp_path, debug_checkpoint):
    cfg = load_config("debug", {"model.backbone.ista_lambda": 0.3, "model.head.pool": "mean"})
    cfg.work_dir, cfg.load_from = str(tmp_path), str(debug_checkpoint)
    Runner.from_cfg(cfg).test()
    (log,) = tmp_path.glob("*/*.log")
    assert "was trained with backbone.ista_lambda=0.1, the config has 0.3" in log.read_text()
    assert "was trained with head.pool='cls', the config has 'mean'" in log.read_text()
