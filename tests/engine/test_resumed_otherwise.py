"""A run that goes on with other settings than it began with, or without some of its files; and short validations."""

import shutil

import pytest
import torch

from crate_mm.engine import Runner, load_config, read_checkpoint
from tests.training import AUGMENT, assert_identical, assert_same_states, debug_config, result_of, train


@pytest.fixture
def go_on(epoch, tmp_path):
    """Load a checkpoint to go on from it at the next epoch, with overrides, and return what is warned of."""

    def resume(source=None, transforms=AUGMENT, **overrides) -> str:
        cfg = debug_config(train_cfg__max_epochs=2, **overrides)
        cfg.train_dataloader.dataset.transforms = transforms
        cfg.work_dir, cfg.resume, cfg.load_from = str(tmp_path), True, str(source or epoch / "epoch_1.pth")
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


def test_a_run_without_a_schedule_is_not_taken_for_a_best_one(go_on, epoch, tmp_path):
    constant = read_checkpoint(epoch / "epoch_1.pth")
    del constant["param_schedulers"]
    torch.save(constant, tmp_path / "constant.pth")
    with pytest.raises(ValueError, match="is of a run without a schedule .*but this run has one: remove the schedule"):
        go_on(tmp_path / "constant.pth")


@pytest.mark.parametrize("setting", ["val_begin", "val_interval"])
def test_the_last_epoch_is_validated_however_late_validations_begin(tmp_path, setting):
    train(tmp_path, train_cfg__max_epochs=1, **{f"train_cfg__{setting}": 5})
    result = result_of(tmp_path)
    assert result["finished"]
    assert result["last"]["epoch"] == 1
    assert list(tmp_path.glob("best_*_epoch_1.pth"))


@pytest.mark.parametrize("name", ["val_dataloader", "test_dataloader"])
def test_no_sample_is_left_out_of_an_evaluation(tmp_path, name):
    cfg = load_config("debug", {f"{name}.drop_last": True})
    cfg.work_dir = str(tmp_path)
    with pytest.raises(ValueError, match=rf"{name}\.drop_last would exclude samples from the metrics"):
        Runner.for_training(cfg)


@pytest.mark.parametrize("what", ["file", "below a file"])
def test_a_work_folder_that_cannot_be_made_is_named(tmp_path, what):
    (tmp_path / "file").write_text("")
    cfg = load_config("debug")
    cfg.work_dir = str(tmp_path / "file" if what == "file" else tmp_path / "file" / "run")
    with pytest.raises(ValueError, match="could not create the work directory .*file.*: "):
        Runner.for_training(cfg)
    assert (tmp_path / "file").read_text() == ""


@pytest.fixture(scope="module")
def first_draws(tmp_path_factory):
    """A work directory after an epoch with the first version of the sampler's draws, and a checkpoint of its midst that
    does not name the version, as from before there was another."""
    folder = tmp_path_factory.mktemp("first_draws")
    options = dict(train_cfg__max_epochs=1, default_hooks__checkpoint__every_iters=6)
    train(folder, train_dataloader__sampler__draws=1, **options)
    within = read_checkpoint(folder / "epoch_0_iter_6.pth")
    assert within["meta"].pop("draws") == 1
    torch.save(within, folder / "old.pth")
    return folder


@pytest.mark.slow
def test_a_run_with_older_draws_goes_on_with_them(first_draws, tmp_path, capfd):
    shutil.copy(first_draws / "old.pth", tmp_path / "epoch_0_iter_6.pth")
    resumed = train(tmp_path, resume=True, train_cfg__max_epochs=1, default_hooks__checkpoint__every_iters=8)
    assert "version 1 of the sampler's draws; the resumed run uses this version too" in "".join(capfd.readouterr())
    whole = read_checkpoint(first_draws / "epoch_1.pth")
    assert_same_states(resumed, whole)
    assert resumed["meta"]["draws"] == 1
    (tmp_path / "epoch_1.pth").unlink()
    again = train(tmp_path, resume=True, train_cfg__max_epochs=1)  # from step 8, whose checkpoint names the version
    assert_identical(again["state_dict"], whole["state_dict"])


@pytest.mark.slow
def test_a_new_run_has_the_newest_draws(first_draws, epoch):
    newest, first = (read_checkpoint(folder / "epoch_1.pth") for folder in (epoch, first_draws))
    assert newest["meta"]["draws"] == 2
    assert not torch.equal(newest["state_dict"]["head.fc.weight"], first["state_dict"]["head.fc.weight"])


def test_draws_that_cannot_be_gone_on_with_are_refused(go_on, first_draws, epoch, tmp_path):
    with pytest.raises(ValueError, match=r"old.pth is of a run with .*draws=1, but this run has 2: leave it out"):
        go_on(first_draws / "old.pth", train_dataloader__sampler__draws=2)
    later = read_checkpoint(epoch / "epoch_1.pth")
    later["meta"]["draws"] = 3
    torch.save(later, tmp_path / "later.pth")
    with pytest.raises(ValueError, match=r"later.pth cannot be resumed from: there is no version 3 of the sampler's"):
        go_on(tmp_path / "later.pth")
