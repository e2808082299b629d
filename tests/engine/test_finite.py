"""Losses and gradients that are not finite: the step is skipped, and the run stops and names the layer."""

import pytest
import torch

from crate_mm.engine import RunStoppedError, read_checkpoint
from tests.training import FP16, assert_same_states, break_gradients, debug_runner, log_of, train


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    with pytest.raises(
        RunStoppedError, match=r"the gradient norm is (nan|inf) at iteration \d+ .*try a smaller learning rate"
    ):
        train(
            tmp_path,
            optim_wrapper__optimizer=dict(type="SGD", lr=1e30),
            optim_wrapper__max_skipped_steps=0,
        )


def test_a_gradient_that_is_not_finite_stops_before_the_step(tmp_path):
    """With a finite loss: Lion's weights would stay finite, its momentum would not."""
    runner = debug_runner(tmp_path, optim_wrapper__max_skipped_steps=0)
    break_gradients(runner, {1})
    with pytest.raises(RunStoppedError, match="the gradient norm is nan at iteration 1 "):
        runner.train()
    assert not runner.optim_wrapper.optimizer.state


@pytest.mark.slow
def test_steps_with_gradients_that_are_not_finite_are_skipped(tmp_path):
    runner = debug_runner(tmp_path, default_hooks__checkpoint__every_iters=1)
    break_gradients(runner, {3, 4, 6, 10, 11})
    seen = []

    def look(head, inputs):
        if head.training:
            seen.append(head.fc.weight.detach().clone())

    runner.model.head.register_forward_pre_hook(look)
    runner.train()
    unmoved = [i for i in range(1, 20) if torch.equal(seen[i - 1], seen[i])]
    assert unmoved == [3, 4, 6, 10, 11]
    checkpoint = read_checkpoint(tmp_path / "epoch_2.pth")
    assert checkpoint["message_hub"]["runtime_info"]["skipped_steps"] == 5
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())
    log = log_of(tmp_path)
    assert "not finite at iteration 4 (learning rate" in log
    assert "the step is skipped (2 of at most 5 in a row)" in log
    assert "skipped writing epoch_0_iter_4.pth: the last step was skipped" in log
    # But at the end of an epoch one is, as the weights are those of the step before.
    assert torch.equal(read_checkpoint(tmp_path / "epoch_1.pth")["state_dict"]["head.fc.weight"], seen[9])


KINDS = {
    "Lion": dict(type="Lion", lr=1e-3, weight_decay=0.1),
    "AdamW": dict(type="AdamW", lr=1e-3, fused=True),
    "SGD": dict(type="SGD", lr=0.05, momentum=0.9, fused=True),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_steps_that_the_device_decides_on_are_the_same(tmp_path, kind):
    """The first step, when the optimizer has no state yet, two in a row, the last one of an epoch, the last of all."""
    logs, checkpoints = {}, {}
    for decides in (False, True):
        folder = tmp_path / str(decides)
        runner = debug_runner(folder, optim_wrapper__optimizer=KINDS[kind], optim_wrapper__decide_on_device=decides)
        break_gradients(runner, {1, 4, 5, 10, 17, 20})
        runner.train()
        checkpoints[decides] = [read_checkpoint(folder / f"epoch_{epoch}.pth") for epoch in (1, 2)]
        lines = [line.split(" - ")[-1] for line in log_of(folder).splitlines()]
        logs[decides] = [line for line in lines if "the step is skipped" in line]
    assert len(logs[True]) == 6
    assert logs[True] == logs[False]
    for here, there in zip(checkpoints[True], checkpoints[False]):
        assert here["message_hub"]["runtime_info"]["skipped_steps"] in (4, 6)
        assert_same_states(here, there)


def test_an_optimizer_that_cannot_leave_a_step_out_by_itself_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match="decide_on_device=True needs .* which SGD with its current settings cannot: leave"
    ):
        debug_runner(
            tmp_path, optim_wrapper__optimizer=dict(type="SGD", lr=1e-3), optim_wrapper__decide_on_device=True
        ).train()


def test_where_the_device_decides_too_many_in_a_row_stop_the_run_a_step_later(tmp_path):
    runner = debug_runner(tmp_path, optim_wrapper__max_skipped_steps=3, optim_wrapper__decide_on_device=True)
    break_gradients(runner, {5, 6, 7, 8})
    where = "in the backward pass, the gradient of head.fc.weight is the first that is not finite"
    with pytest.raises(RunStoppedError, match=f"at iteration 7 .*3 of at most 3 in a row; .*{where}"):
        runner.train()
    assert runner.iter == 7  # in the eighth step


@pytest.mark.parametrize(("scale", "last"), [(8.0, 7), (dict(init_scale=8.0), 10)])
@pytest.mark.slow
def test_fp16_stops_when_no_scale_helps(tmp_path, scale, last):
    """A scale that is searched for goes from 8 to 1 first, in three steps."""
    options = dict(FP16, optim_wrapper__loss_scale=scale, optim_wrapper__max_skipped_steps=3)
    runner = debug_runner(tmp_path, **options)
    break_gradients(runner, set(range(5, 20)))
    with pytest.raises(RunStoppedError, match=f"at iteration {last} .*3 of at most 3 in a row; .*head.fc.weight"):
        runner.train()


@pytest.mark.parametrize("wrong", ["gradient", "output", "weight"])
@pytest.mark.slow
def test_too_many_skipped_steps_in_a_row_stop_the_run_and_name_the_layer(tmp_path, wrong):
    runner = debug_runner(tmp_path, optim_wrapper__max_skipped_steps=3, default_hooks__checkpoint__every_iters=1)
    model = runner.model
    if wrong == "gradient":
        break_gradients(runner, {5, 6, 7})
        where = "the layers' outputs are finite; in the backward pass, the gradient of head.fc.weight "
        where += "is the first that is not finite"
    elif wrong == "output":
        layer = next(name for name, _ in model.named_modules() if name.endswith("blocks.1.compress"))
        model.get_submodule(layer).register_forward_hook(lambda m, x, y: y * float("inf") if runner.iter >= 4 else y)
        where = f"the output of {layer} is the first that is not finite"
    else:

        def overflow(module, inputs):
            if runner.iter == 4:
                torch.nn.init.constant_(module.bias, float("inf"))

        model.head.fc.register_forward_pre_hook(overflow)
        where = "the weights of head.fc.bias are not finite"
    with pytest.raises(RunStoppedError, match=f"at iteration 7 .*3 of at most 3 in a row; {where}: try a smaller"):
        runner.train()
    newest = max(tmp_path.glob("epoch_*.pth"), key=lambda path: path.stat().st_mtime_ns)
    assert newest.name == "epoch_0_iter_4.pth"
    assert all(value.isfinite().all() for value in read_checkpoint(newest)["state_dict"].values())
