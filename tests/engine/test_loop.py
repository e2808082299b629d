"""The training loop: the same steps however they are spread, and what ends with it."""

import multiprocessing

import pytest

from crate_mm.engine import RunStoppedError, read_checkpoint
from tests.training import SGD, assert_identical, break_gradients, debug_runner, result_of, train, train_on_processes


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.slow
def test_the_loaders_workers_end_with_the_training(tmp_path, persistent, fails):
    """They are not left to the garbage collector, which takes ten seconds for each."""
    loaders = [f"{split}_dataloader" for split in ("train", "val", "test")]
    options = {f"{loader}__num_workers": 1 for loader in loaders}
    options |= {f"{loader}__persistent_workers": persistent for loader in loaders}
    runner = debug_runner(tmp_path, train_cfg__max_epochs=1, optim_wrapper__max_skipped_steps=0, **options)
    there = set(multiprocessing.active_children())
    seen = []
    runner.model.head.register_forward_pre_hook(lambda *_: seen.extend(multiprocessing.active_children()))
    if fails:
        break_gradients(runner, {3})
        with pytest.raises(RunStoppedError, match="the gradient norm is nan at iteration 3"):
            runner.train()
    else:
        runner.train()
        assert runner.val() == runner.test()  # with others
    assert set(seen) > there
    assert set(multiprocessing.active_children()) == there


@pytest.mark.slow
def test_processes_and_accumulation_take_the_same_steps(one_process, two_processes, tmp_path):
    one, two = (read_checkpoint(folder / "epoch_1.pth") for folder in (one_process, two_processes))
    accumulated = train(tmp_path / "accumulated", max_batch_per_device=8, **SGD)
    both = train_on_processes(2, tmp_path / "both", max_batch_per_device=4)
    start = debug_runner(tmp_path / "start").model.state_dict()
    for other in (accumulated, two, both):
        assert other["meta"]["iter"] == one["meta"]["iter"] == 10
        for key, value in one["state_dict"].items():
            moved = (value - start[key]).abs().max()
            assert (value - other["state_dict"][key]).abs().max() <= 1e-3 * moved + 1e-7, key
        assert_identical(one["param_schedulers"], other["param_schedulers"])


@pytest.mark.slow
def test_a_run_stops_early_where_the_headline_no_longer_rises(tmp_path):
    """MMEngine's hook; the epochs that are done are a whole run, and their result says how many they are."""
    stopping = dict(type="EarlyStoppingHook", monitor="eval/top1", rule="greater", patience=1, min_delta=100.0)
    runner = debug_runner(tmp_path, train_cfg__max_epochs=5, custom_hooks=[stopping])
    runner.train()
    assert runner.epoch == 2
    assert (tmp_path / "epoch_2.pth").exists()
    assert not (tmp_path / "epoch_3.pth").exists()
    result = result_of(tmp_path)
    assert result["epochs"] == 2, result
