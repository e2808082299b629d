"""The training loop: the same steps however they are spread, and what ends with it."""

import multiprocessing

import pytest

from crate_mm.engine import RunStoppedError
from tests.training import SGD, assert_identical, break_gradients, debug_runner, train, train_on_processes


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("persistent", [False, True])
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
def test_processes_and_accumulation_take_the_same_steps(tmp_path):
    one = train(tmp_path / "one", **SGD)
    accumulated = train(tmp_path / "accumulated", max_batch_per_device=8, **SGD)
    two = train_on_processes(2, tmp_path / "two")
    both = train_on_processes(2, tmp_path / "both", max_batch_per_device=4)
    start = train(tmp_path / "start", **{**SGD, "optim_wrapper__optimizer__lr": 1e-12})
    for other in (accumulated, two, both):
        assert other["meta"]["iter"] == one["meta"]["iter"] == 10
        for key, value in one["state_dict"].items():
            moved = (value - start["state_dict"][key]).abs().max()
            difference = (value - other["state_dict"][key]).abs().max()
            assert difference <= 1e-3 * moved + 1e-7, key
    assert_identical(one["param_schedulers"], two["param_schedulers"])
    assert_identical(one["param_schedulers"], accumulated["param_schedulers"])
