"""A run that goes on with other settings than it began with, or without some of its files; and short validations."""

import json

import pytest

from crate_mm.engine import Runner, load_config
from tests.training import AUGMENT, debug_config, train


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A work folder after one epoch."""
    folder = tmp_path_factory.mktemp("begun")
    train(folder, train_cfg__max_epochs=1)
    return folder


@pytest.fixture
def go_on(begun, tmp_path):
    """Load a checkpoint to go on from it at the next epoch, with overrides, and return what is warned of."""

    def resume(source=None, transforms=AUGMENT, **overrides) -> str:
        cfg = debug_config(train_cfg__max_epochs=2, **overrides)
        cfg.train_dataloader.dataset.transforms = transforms
        cfg.work_dir, cfg.resume, cfg.load_from = str(tmp_path), True, str(source or begun / "epoch_1.pth")
        runner = Runner.for_training(cfg)
        warned: list[str] = []
        runner.logger.warning = lambda text, *_: warned.append(str(text))
        runner.load_or_resume()
        return "\n".join(warned)

    return resume


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"optim_wrapper__type": "AmpOptimWrapper"}, "optim_wrapper.type="),
        ({"optim_wrapper__optimizer__weight_decay": 0.25}, "optim_wrapper.optimizer.weight_decay=0.5, now 0.25"),
        ({"optim_wrapper__optimizer__lr": 0.25}, "optim_wrapper.optimizer.lr=0.001, now 0.25"),
        ({"model__label_smoothing": 0.0}, "model.label_smoothing=0.1, now 0.0"),
        ({"optim_wrapper__clip_grad__max_norm": 1.0}, "optim_wrapper.clip_grad"),
        ({"param_scheduler__warmup": 1}, "param_scheduler.warmup=5, now 1"),
    ],
)
def test_a_resume_says_what_is_other_than_it_was(go_on, change, said):
    warned = go_on(**change)
    assert "was trained with other settings: " in warned
    assert said in warned


def test_forgotten_transforms_are_said(go_on):
    assert "train_transforms=" in go_on(transforms=[])
    assert "train_transforms.0.degrees=15, now 20" in go_on(transforms=[{**AUGMENT[0], "degrees": 20}, *AUGMENT[1:]])


def test_a_resume_as_it_was_says_nothing(go_on):
    assert "other settings" not in go_on()


def test_a_run_without_a_schedule_is_not_taken_for_a_best_one(go_on, tmp_path_factory):
    folder = tmp_path_factory.mktemp("constant")
    train(folder, train_cfg__max_epochs=1, param_scheduler=None)
    with pytest.raises(ValueError, match="is of a run without a schedule .*this one has one: resume as it was"):
        go_on(folder / "epoch_1.pth")


def test_a_best_checkpoint_that_is_gone_is_said(tmp_path, capfd):
    train(tmp_path, train_cfg__max_epochs=1)
    (best,) = tmp_path.glob("best_*")
    capfd.readouterr()
    best.unlink()
    train(tmp_path, resume=True, train_cfg__max_epochs=2)
    assert f"{best.name} is gone: it had" in "".join(capfd.readouterr())


@pytest.mark.parametrize("setting", ["val_begin", "val_interval"])
def test_the_last_epoch_is_validated_however_late_validations_begin(tmp_path, setting):
    train(tmp_path, train_cfg__max_epochs=1, **{f"train_cfg__{setting}": 5})
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["finished"]
    assert result["last"]["epoch"] == 1
    assert list(tmp_path.glob("best_*_epoch_1.pth"))


@pytest.mark.parametrize("name", ["val_dataloader", "test_dataloader"])
def test_no_sample_is_left_out_of_an_evaluation(tmp_path, name):
    cfg = load_config("debug", {f"{name}.drop_last": True})
    cfg.work_dir = str(tmp_path)
    with pytest.raises(ValueError, match=rf"{name}\.drop_last would leave samples out of the figures"):
        Runner.for_training(cfg)


@pytest.mark.parametrize("what", ["file", "below a file"])
def test_a_work_folder_that_cannot_be_made_is_named(tmp_path, what):
    (tmp_path / "file").write_text("")
    cfg = load_config("debug")
    cfg.work_dir = str(tmp_path / "file" if what == "file" else tmp_path / "file" / "run")
    with pytest.raises(ValueError, match="the work folder .*file.* cannot be made: "):
        Runner.for_training(cfg)
    assert (tmp_path / "file").read_text() == ""
