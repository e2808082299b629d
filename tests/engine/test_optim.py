"""Optimizers, mixed precision and clipping."""

import copy
import pickle
from typing import ClassVar

import pytest
import torch
from torch.distributed.optim import ZeroRedundancyOptimizer

from crate_mm.engine import Runner, amp_dtype, amp_optim_wrapper, read_checkpoint
from crate_mm.engine.optim.sharded import ShardedOptimizer
from crate_mm.engine.parallel.ddp import share_model
from crate_mm.engine.safety.process import ProcessSettings
from crate_mm.evaluation import ClassificationMetric
from crate_mm.registry import METRICS
from tests.training import (
    FP16,
    SGD,
    assert_identical,
    assert_same_states,
    debug_config,
    debug_runner,
    log_of,
    on_processes,
    scalars_of,
    train,
    train_on_processes,
)


@pytest.mark.slow
def test_a_sharded_optimizer_takes_the_same_steps(tmp_path):
    """With groups and a scaled rate; and its checkpoint is the plain one's, to resume from without sharding too."""
    momentum = dict(optim_wrapper__optimizer__momentum=0.9, auto_scale_lr=dict(base_batch_size=16, enable=True))
    rules = dict(flat_decay_mult=0.0, custom_keys=dict(head=dict(lr_mult=0.5)))
    momentum |= dict(optim_wrapper__optimizer__weight_decay=0.1, optim_wrapper__paramwise_cfg=rules)
    plain = train_on_processes(2, tmp_path / "plain", **momentum)
    sharded = train_on_processes(2, tmp_path / "sharded", zero=True, **momentum)
    for key in ("state_dict", "optimizer"):
        assert_identical(sharded[key], plain[key], key)
    assert sharded["meta"]["optimizer"] == "SGD"
    longer = {**SGD, **momentum, "train_cfg__max_epochs": 2, "resume": True}
    assert train(tmp_path / "sharded", **longer)["meta"]["epoch"] == 2


def consolidate_twice(rank: int) -> dict:
    """What the first process has of a sharded AdamW's state in our way and in PyTorch's, and who has been told."""
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(4, n)) for n in range(1, 8)]
    groups = [{"params": weights[:2], "lr": 0.1}, {"params": weights[2:], "names": list("cdefg")}]
    sharded = ShardedOptimizer(torch.optim.AdamW(groups, lr=0.01), {"lr": 0.01})
    for weight in weights[1:]:  # the first has no gradient, so no state
        weight.grad = torch.randn_like(weight)
    sharded.step()
    broadcasts = 0
    broadcast = torch.distributed.broadcast

    def count(*args, **kwargs):
        nonlocal broadcasts
        broadcasts += 1
        return broadcast(*args, **kwargs)

    torch.distributed.broadcast = count
    sharded.consolidate_state_dict()
    answer = {"broadcasts": broadcasts, "has it": sharded.full_state is not None}
    if rank == 0:
        answer["ours"] = pickle.dumps(sharded.state_dict())
        with pytest.raises(RuntimeError, match="call consolidate_state_dict on all"):
            sharded.state_dict()
    ZeroRedundancyOptimizer.consolidate_state_dict(sharded)
    if rank == 0:
        answer["PyTorch's"] = pickle.dumps(ZeroRedundancyOptimizer.state_dict(sharded))
    return answer


@pytest.mark.slow
def test_a_sharded_optimizers_state_goes_to_the_first_process_alone():
    answers = on_processes(3, consolidate_twice)
    assert [answers[rank]["has it"] for rank in range(3)] == [True, False, False]
    assert [answers[rank]["broadcasts"] for rank in range(3)] == [0, 0, 0]
    ours, theirs = (pickle.loads(answers[0][key]) for key in ("ours", "PyTorch's"))
    assert list(ours["state"]) == [1, 2, 3, 4, 5, 6]
    assert_identical(ours, theirs)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_mixed_precision_trains_and_differs(epoch, tmp_path):
    wrapper = {f"optim_wrapper__{key}": value for key, value in amp_optim_wrapper().items()}
    amp = train(tmp_path, train_cfg__max_epochs=1, **wrapper)
    assert all(value.dtype == torch.float32 for value in amp["state_dict"].values())
    losses, plain_losses = ([row["loss"] for row in scalars_of(f) if "loss" in row] for f in (tmp_path, epoch))
    # Not the weights: Lion's steps are signs, which may agree in both precisions.
    assert losses != plain_losses
    assert losses == pytest.approx(plain_losses, rel=0.02)


@pytest.mark.slow
def test_gradients_are_exchanged_in_16_bits(two_processes, tmp_path):
    """They are close, and other."""
    plain = read_checkpoint(two_processes / "epoch_1.pth")["state_dict"]
    short = train_on_processes(2, tmp_path, ddp=dict(compress="bf16"))["state_dict"]
    torch.testing.assert_close(short, plain, rtol=0.02, atol=2e-3)
    assert not torch.equal(short["head.fc.weight"], plain["head.fc.weight"])


def test_a_static_graph_does_not_go_with_micro_batches(tmp_path):
    cfg = debug_config(ddp=dict(static_graph=True), max_batch_per_device=8)
    cfg.work_dir = str(tmp_path)
    with pytest.raises(ValueError, match="static_graph does not support the 4 micro-batches of a step"):
        Runner.for_training(cfg)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(bucket_cap=1), r"ddp has no option 'bucket_cap': .*bucket_cap_mb"),
        (dict(device_ids=[0]), r"ddp.device_ids cannot be set"),
    ],
)
def test_an_option_that_is_none_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        share_model(torch.nn.Linear(2, 2), dict(ddp=options))


@METRICS.register_module()
class Precision(ClassificationMetric):
    """Notes the precision of the logits that it gets."""

    seen: ClassVar[set] = set()

    def process(self, data_batch, data_samples):
        self.seen.update(sample["logits"].dtype for sample in data_samples)
        super().process(data_batch, data_samples)


@pytest.mark.parametrize(
    ("trained", "asked", "said"),
    [
        ("float32", None, None),
        ("bfloat16", None, "trained in bfloat16, validated in bfloat16"),
        ("bfloat16", "float32", "trained in bfloat16, validated in float32"),
        ("float32", "bfloat16", "trained in float32, validated in bfloat16"),
    ],
)
@pytest.mark.slow
def test_validation_is_in_the_precision_of_training_or_what_is_asked_for(tmp_path, trained, asked, said):
    wrapper = dict(optim_wrapper__type="AutocastOptimWrapper") if trained == "bfloat16" else {}
    Precision.seen.clear()
    options = dict(val_evaluator__type="Precision", val_dtype=asked, train_cfg__max_epochs=1, **wrapper)
    runner = debug_runner(tmp_path, **options)
    runner.train()
    assert Precision.seen == {getattr(torch, asked or trained)}
    assert (said or "learning rate") in runner.describe()
    assert ("validated" in runner.describe()) == bool(said)
    pixels = torch.zeros(2, 1, 8, 8)
    for mode in (True, False):  # and behind the validation all is as it was
        assert runner.model.train(mode)(pixels).dtype == torch.float32
    assert runner.val()["eval/top1"] >= 0
    assert Precision.seen == {getattr(torch, asked or trained)}


def test_a_copy_evaluates_in_mixed_precision_with_its_own_weights(tmp_path):
    runner = debug_runner(tmp_path)
    runner.use_autocast("bfloat16")
    other = copy.deepcopy(runner.model.eval())
    for parameter in other.parameters():
        torch.nn.init.zeros_(parameter)
    logits = other(torch.ones(2, 1, 8, 8))
    assert logits.dtype == torch.bfloat16
    assert not logits.any()


@pytest.fixture
def _process_settings():
    before = ProcessSettings()
    yield
    before.apply()


@pytest.mark.usefixtures("_process_settings")
@pytest.mark.parametrize("program", ["highest", "high", "medium"])
@pytest.mark.parametrize("tf32", [True, False])
def test_tf32_is_an_option_whatever_the_program_set(tmp_path, tf32, program):
    torch.set_float32_matmul_precision(program)
    torch.backends.cudnn.allow_tf32 = not tf32
    with debug_runner(tmp_path, tf32=tf32).in_process_settings():
        assert torch.backends.cuda.matmul.allow_tf32 is torch.backends.cudnn.allow_tf32 is tf32
        assert torch.get_float32_matmul_precision() == ("high" if tf32 else "highest")  # as torch.compile reads it
    assert torch.get_float32_matmul_precision() == program
    assert torch.backends.cudnn.allow_tf32 is not tf32


def test_fp16_where_the_gpu_has_no_bf16(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert amp_dtype() == "float16"
    assert amp_optim_wrapper()["type"] == "AmpOptimWrapper"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert amp_dtype() == "bfloat16"


@pytest.mark.slow
def test_fp16_trains_as_float32_does(epoch, tmp_path):
    plain, fp16 = read_checkpoint(epoch / "epoch_1.pth"), train(tmp_path, train_cfg__max_epochs=1, **FP16)
    name = "backbone.blocks.1.sparsify.dictionary"
    one, other = plain["state_dict"][name], fp16["state_dict"][name]
    assert 0 < (one - other).norm() < 0.01 * one.norm()
    assert fp16["optimizer"]["loss_scaler"]["scale"] == 2.0**16
    assert fp16["optimizer"]["loss_scaler"]["_growth_tracker"] == 10


@pytest.mark.slow
def test_the_scalers_search_is_no_trouble_and_a_resume_goes_on_with_its_scale(tmp_path):
    options = dict(FP16, optim_wrapper__loss_scale=dict(init_scale=2.0**40), optim_wrapper__max_skipped_steps=3)
    whole = train(tmp_path / "whole", **options)
    info = whole["message_hub"]["runtime_info"]
    assert info["skipped_steps"] > 3
    assert whole["optimizer"]["loss_scaler"]["scale"] == 2.0 ** (40 - info["skipped_steps"])
    assert_same_states(train(tmp_path / "part", resume=tmp_path / "whole" / "epoch_1.pth", **options), whole)


@pytest.mark.parametrize("scale", [0, -1.0, "static", True])
def test_a_loss_scale_that_is_none_is_refused(tmp_path, scale):
    with pytest.raises(ValueError, match=f"loss_scale must be 'dynamic', a positive number or .*got {scale!r}"):
        debug_runner(tmp_path, **FP16, optim_wrapper__loss_scale=scale).build_for_training()


def test_clipping_is_pytorchs_and_the_norm_is_logged(tmp_path):
    runner = debug_runner(tmp_path, optim_wrapper__clip_grad__max_norm=0.3)
    runner.build_for_training()
    wrapper = runner.optim_wrapper
    params = [p for group in wrapper.param_groups for p in group["params"]]
    for p in params:
        p.grad = torch.randn_like(p)
    expected = [p.grad.clone() for p in params]
    clipped = [torch.nn.Parameter(torch.zeros_like(g)) for g in expected]
    for p, gradient in zip(clipped, expected):
        p.grad = gradient
    norm = torch.nn.utils.clip_grad_norm_(clipped, 0.3)
    wrapper.step()
    torch.testing.assert_close([p.grad for p in params], [p.grad for p in clipped])
    assert wrapper.grad_norm.item() == pytest.approx(norm.item())
    runner = debug_runner(tmp_path, train_cfg__max_epochs=1)
    runner.train()
    assert runner.message_hub.get_scalar("train/grad_norm").current() == pytest.approx(runner.optim_wrapper.grad_norm)


@pytest.mark.slow
def test_an_optimizer_at_its_own_learning_rate(tmp_path):
    options = dict(optim_wrapper__optimizer=dict(type="AdamW"), train_cfg__max_epochs=1)
    assert train(tmp_path, **options)["meta"]["optimizer"] == "AdamW"
    assert "AdamW, learning rate 0.001 " in log_of(tmp_path)
