"""A work directory that has been used: what goes aside, and what stays."""

import shutil

import pytest

from crate_mm.engine import Runner, load_config, read_checkpoint
from tests.training import debug_runner, result_of, train


@pytest.mark.slow
def test_checkpoints_result_and_config_of_another_run_are_put_aside(tmp_path):
    train(tmp_path, train_cfg__max_epochs=2)
    before, config = (tmp_path / "result.json").read_bytes(), (tmp_path / "debug.py").read_bytes()
    train(tmp_path, train_cfg__max_epochs=1, randomness__seed=7)
    (aside,) = tmp_path.glob("before_*")
    assert {path.name for path in aside.glob("epoch_*")} == {"epoch_1.pth", "epoch_2.pth"}
    assert [path.name for path in tmp_path.glob("epoch_*")] == ["epoch_1.pth"]
    assert len(list(tmp_path.glob("best_*"))) == len(list(aside.glob("best_*"))) == 1
    assert ((aside / "result.json").read_bytes(), (aside / "debug.py").read_bytes()) == (before, config)
    assert (result_of(tmp_path)["seed"], result_of(tmp_path)["max_epochs"]) == (7, 1)
    assert "seed': 7" in (tmp_path / "debug.py").read_text() or "seed=7" in (tmp_path / "debug.py").read_text()
    # And of the same run, later than what it is resumed from.
    shutil.copy(aside / "epoch_2.pth", tmp_path)
    train(tmp_path, resume=tmp_path / "epoch_1.pth", train_cfg__max_epochs=2, randomness__seed=7)
    assert read_checkpoint(tmp_path / "epoch_2.pth")["meta"]["seed"] == 7
    assert len(list(tmp_path.glob("before_*"))) == 2


def test_leftovers_of_a_killed_write_are_removed(tmp_path):
    """And what others have left in the folder is not, whatever its name."""
    others = ["download.bin.part", "epoch_1.pth.part", ".mine.0123abcd.part"]
    for name in (".epoch_1.pth.0123abcd.part", ".best_eval_top1_epoch_3.pth.0123abcd.part", *others):
        (tmp_path / name).touch()
    (tmp_path / "packed.part").mkdir()
    train(tmp_path, train_cfg__max_epochs=1)
    assert {p.name for p in tmp_path.iterdir() if p.name.endswith(".part")} == {"packed.part", *others}


@pytest.mark.parametrize("then", ["a refused run", "a test"])
def test_what_moves_nothing(epoch, tmp_path, then):
    shutil.copytree(epoch, tmp_path, dirs_exist_ok=True)
    before = sorted(path.name for path in tmp_path.iterdir() if path.is_file())
    if then == "a test":
        runner = debug_runner(tmp_path, load_from=str(tmp_path / "epoch_1.pth"))
        runner.test()
        runner.val()
    else:
        with pytest.raises(ValueError, match="cannot tell whether greater or less is better"):
            train(tmp_path, default_hooks__checkpoint__save_best="eval/oddity")
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == before
    assert not list(tmp_path.glob("before_*"))


@pytest.mark.slow
def test_a_config_in_its_own_work_folder_stays(epoch, tmp_path):
    shutil.copytree(epoch, tmp_path, dirs_exist_ok=True)
    cfg = load_config(tmp_path / "debug.py")
    cfg.work_dir = str(tmp_path)
    Runner.from_cfg(cfg).train()
    assert (tmp_path / "debug.py").is_file()
    (aside,) = tmp_path.glob("before_*")
    assert not (aside / "debug.py").exists()
