"""What result.json and a checkpoint say of a run."""

import json
from types import SimpleNamespace

from crate_mm.checkpoints.form import check_form
from crate_mm.engine import load_config
from crate_mm.engine.results import describe_checkpoint
from tests.training import (
    train,
)


def test_a_model_that_cannot_be_traced_still_trains(tmp_path, monkeypatch):
    from crate_mm.engine import results

    def fail(*args):
        raise RuntimeError("no tracing")

    monkeypatch.setattr(results, "count_complexity", fail)
    train(tmp_path, train_cfg__max_epochs=1)
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["flops"], result["parameters"] > 0) == (None, True)


def test_odd_transforms_of_a_dataset_of_ones_own_do_not_spoil_a_checkpoint(tmp_path):
    described = describe_checkpoint(
        SimpleNamespace(
            cfg=load_config("debug", {"test_dataloader.dataset.transforms": "bpe"}),
            initialized_from=None,
            optim_wrapper=SimpleNamespace(optimizer=None),
            world_size=1,
            train_dataloader=[],
        )
    )
    assert described["test_transforms"] is None
    check_form({"meta": described}, "x.pth")
