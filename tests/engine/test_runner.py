"""Training as the Runner does it: the same steps however they are spread, and the same run however often resumed."""

import json
import multiprocessing
import shutil
from pathlib import Path

import pytest
import torch

from crate_mm.checkpoints.files import AtomicBackend
from crate_mm.engine import Runner, RunStoppedError, load_config, read_checkpoint
from tests.training import AUGMENT, SGD, assert_identical, debug_config, train, train_on_processes


# Optimizer, schedule, EMA, shuffling and augmentation all at once; the workers are a case of their own, since
# PyTorch's own way of seeding them does not survive a restart.
@pytest.mark.parametrize(
    "options",
    [
        dict(ema_momentum=0.1),
        dict(train_dataloader__num_workers=2, train_dataloader__persistent_workers=True),
        dict(optim_wrapper__optimizer__type="AdamW", max_batch_per_device=8, optim_wrapper__clip_grad__max_norm=1.0),
    ],
    ids=["ema", "workers", "adamw-accumulate-clip"],
)
@pytest.mark.slow
def test_resuming_changes_nothing(tmp_path, options):
    whole = train(tmp_path / "whole", train_cfg__max_epochs=4, **options)
    (tmp_path / "part").mkdir()
    shutil.copy(tmp_path / "whole" / "epoch_2.pth", tmp_path / "part")  # as a run that was killed in its third epoch
    resumed = train(tmp_path / "part", resume=True, train_cfg__max_epochs=4, **options)
    for key in ("state_dict", "optimizer", "param_schedulers", "ema_state_dict"):
        assert_identical(whole.get(key), resumed.get(key), key)
    assert ("ema_state_dict" in whole) == ("ema_momentum" in options)
    assert resumed["meta"]["iter"] == 40
    best = {Path(c["message_hub"]["runtime_info"]["best_ckpt"]).name for c in (whole, resumed)}
    assert len(best) == 1


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
def test_stopping_early_on_the_curve_of_a_longer_run(tmp_path):
    whole = train(tmp_path / "whole", train_cfg__max_epochs=3)
    train(tmp_path / "part", train_cfg__max_epochs=1, param_scheduler__end=3)
    resumed = train(tmp_path / "part", resume=True, train_cfg__max_epochs=3)
    assert_identical(whole["state_dict"], resumed["state_dict"])


@pytest.mark.slow
def test_seeds_matter_and_repeat(tmp_path):
    one, again, other = (
        train(tmp_path / name, train_cfg__max_epochs=1, randomness__seed=seed)["state_dict"]
        for name, seed in (("one", 3), ("again", 3), ("other", 4))
    )
    assert_identical(one, again)
    assert not torch.equal(one["head.fc.weight"], other["head.fc.weight"])


@pytest.mark.slow
def test_a_sharded_optimizer_takes_the_same_steps(tmp_path):
    """And its checkpoint is the plain one's, to resume from without sharding too."""
    momentum = dict(optim_wrapper__optimizer__momentum=0.9)
    plain = train_on_processes(2, tmp_path / "plain", **momentum)
    sharded = train_on_processes(2, tmp_path / "sharded", zero=True, **momentum)
    for key in ("state_dict", "optimizer"):
        assert_identical(sharded[key], plain[key], key)
    assert sharded["meta"]["optimizer"] == "SGD"
    longer = {**SGD, **momentum, "train_cfg__max_epochs": 2, "resume": True}
    assert_identical(
        train(tmp_path / "sharded", **longer)["state_dict"], train(tmp_path / "plain", **longer)["state_dict"]
    )


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


@pytest.mark.slow
def test_the_start_is_announced_and_logs_are_json_lines(tmp_path):
    train(tmp_path, max_batch_per_device=8, train_cfg__max_epochs=1, default_hooks__logger__interval=1)
    (log,) = tmp_path.glob("*/*.log")
    text = log.read_text()
    assert "effective batch 32 = 1 process x 32 in 4 micro-batches of 8 images of 320; 10 steps an epoch" in text
    assert "Lion, learning rate 0.001 after 2 steps of warm-up" in text
    assert "eta: " in text
    (scalars,) = tmp_path.glob("*/vis_data/scalars.json")
    lines = [json.loads(line) for line in scalars.read_text().splitlines()]
    assert [line["iter"] for line in lines if "loss" in line] == list(range(1, 11))
    assert "eval/top1" in lines[-1]
    assert list(tmp_path.glob("*/vis_data/events.out.tfevents*"))


@pytest.mark.slow
def test_validation_loss_is_not_averaged_over_epochs(tmp_path):
    train(tmp_path)
    (scalars,) = tmp_path.glob("*/vis_data/scalars.json")
    logged = [line["eval/loss"] for line in map(json.loads, scalars.read_text().splitlines()) if "eval/loss" in line]
    cfg = debug_config()
    cfg.work_dir, cfg.load_from = str(tmp_path / "test"), str(tmp_path / "epoch_2.pth")
    assert logged[1] == pytest.approx(Runner.from_cfg(cfg).test()["eval/loss"], rel=1e-6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_mixed_precision_trains_and_differs(tmp_path):
    from crate_mm.engine import amp_optim_wrapper

    plain = train(tmp_path / "plain", train_cfg__max_epochs=1)
    amp = train(
        tmp_path / "amp", train_cfg__max_epochs=1, **{f"optim_wrapper__{k}": v for k, v in amp_optim_wrapper().items()}
    )
    assert all(value.dtype == torch.float32 for value in amp["state_dict"].values())
    assert not torch.equal(plain["state_dict"]["head.fc.weight"], amp["state_dict"]["head.fc.weight"])
    (scalars,) = (tmp_path / "amp").glob("*/vis_data/scalars.json")
    (plain_scalars,) = (tmp_path / "plain").glob("*/vis_data/scalars.json")
    losses, plain_losses = (
        [line["loss"] for line in map(json.loads, file.read_text().splitlines()) if "loss" in line]
        for file in (scalars, plain_scalars)
    )
    assert losses == pytest.approx(plain_losses, rel=0.02)


def test_fp16_where_the_gpu_has_no_bf16(monkeypatch):
    from crate_mm.engine import amp_dtype, amp_optim_wrapper

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert amp_dtype() == "float16"
    assert amp_optim_wrapper()["type"] == "AmpOptimWrapper"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert amp_dtype() == "bfloat16"


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    with pytest.raises(
        RunStoppedError, match=r"the gradient norm is (nan|inf) at iteration \d+ .*try a smaller learning rate"
    ):
        train(
            tmp_path,
            optim_wrapper__optimizer=dict(type="SGD", lr=1e30),
            optim_wrapper__max_skipped_steps=0,
        )


def break_gradients(runner: Runner, at: set[int]) -> None:
    """Make gradients of the head NaN at these iterations, counted from 1."""
    runner.model.head.fc.weight.register_hook(lambda g: g * float("nan") if runner.iter + 1 in at else g)


def debug_runner(work_dir: Path, **overrides) -> Runner:
    cfg = debug_config(**overrides)
    cfg.work_dir = str(work_dir)
    return Runner.from_cfg(cfg)


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
    (log,) = tmp_path.glob("*/*.log")
    assert "not finite at iteration 4 (learning rate" in log.read_text()
    assert "the step is skipped (2 of at most 5 in a row)" in log.read_text()
    assert "epoch_0_iter_4.pth is not written: the last step was skipped" in log.read_text()
    # But at the end of an epoch one is, as the weights are those of the step before.
    assert torch.equal(read_checkpoint(tmp_path / "epoch_1.pth")["state_dict"]["head.fc.weight"], seen[9])


@pytest.mark.slow
def test_checkpoints_of_another_run_are_put_aside(tmp_path):
    train(tmp_path, train_cfg__max_epochs=2)
    train(tmp_path, train_cfg__max_epochs=1, randomness__seed=7)
    (aside,) = tmp_path.glob("before_*")
    assert {path.name for path in aside.glob("epoch_*")} == {"epoch_1.pth", "epoch_2.pth"}
    assert [path.name for path in tmp_path.glob("epoch_*")] == ["epoch_1.pth"]
    assert len(list(tmp_path.glob("best_*"))) == len(list(aside.glob("best_*"))) == 1
    # And of the same run, later than what it is resumed from.
    shutil.copy(aside / "epoch_2.pth", tmp_path)
    cfg = debug_config(randomness__seed=7)
    cfg.train_dataloader.dataset.transforms = AUGMENT
    cfg.work_dir, cfg.resume, cfg.load_from = str(tmp_path), True, str(tmp_path / "epoch_1.pth")
    Runner.from_cfg(cfg).train()
    assert read_checkpoint(tmp_path / "epoch_2.pth")["meta"]["seed"] == 7
    assert len(list(tmp_path.glob("before_*"))) == 2


def test_processes_that_resume_from_different_files_stop(tmp_path, debug_checkpoint, monkeypatch):
    shutil.copy(debug_checkpoint, tmp_path)
    monkeypatch.setattr(Runner, "world_size", 2)
    monkeypatch.setattr(
        "crate_mm.engine.safety.agreement.all_gather_object",
        lambda mine: [mine, (0, 0, "another") if isinstance(mine, tuple) else mine],
    )
    with pytest.raises(ValueError, match=r"is another file for process 1 \(epoch 0, iteration 0\) than here"):
        train(tmp_path, resume=True)


FP16 = dict(optim_wrapper__type="AmpOptimWrapper", optim_wrapper__dtype="float16")


@pytest.mark.slow
def test_fp16_trains_as_float32_does(tmp_path):
    plain, fp16 = (train(tmp_path / n, train_cfg__max_epochs=1, **o) for n, o in (("plain", {}), ("fp16", FP16)))
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
    (tmp_path / "part").mkdir()
    shutil.copy(tmp_path / "whole" / "epoch_1.pth", tmp_path / "part")
    resumed = train(tmp_path / "part", resume=True, **options)
    for key in ("state_dict", "optimizer"):
        assert_identical(resumed[key], whole[key], key)


@pytest.mark.parametrize(("scale", "last"), [(8.0, 7), (dict(init_scale=8.0), 10)])
def test_fp16_stops_when_no_scale_helps(tmp_path, scale, last):
    """A scale that is searched for goes from 8 to 1 first, in three steps."""
    options = dict(FP16, optim_wrapper__loss_scale=scale, optim_wrapper__max_skipped_steps=3)
    runner = debug_runner(tmp_path, **options)
    break_gradients(runner, set(range(5, 20)))
    with pytest.raises(RunStoppedError, match=f"at iteration {last} .*3 of at most 3 in a row; .*head.fc.weight"):
        runner.train()


@pytest.mark.parametrize("scale", [0, -1.0, "static", True])
def test_a_loss_scale_that_is_none_is_refused(tmp_path, scale):
    with pytest.raises(ValueError, match=f"loss_scale must be 'dynamic', a number above 0 or .*: {scale!r}"):
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


@pytest.mark.parametrize("wrong", ["gradient", "output", "weight", "patches"])
def test_too_many_skipped_steps_in_a_row_stop_the_run_and_name_the_layer(tmp_path, wrong):
    runner = debug_runner(tmp_path, optim_wrapper__max_skipped_steps=3, default_hooks__checkpoint__every_iters=1)
    model = runner.model
    if wrong == "gradient":
        break_gradients(runner, {5, 6, 7})
        where = "the layers' outputs are finite; going back, the gradient of head.fc.weight is the first that is not"
    elif wrong == "output":
        layer = next(name for name, _ in model.named_modules() if name.endswith("blocks.1.compress"))
        model.get_submodule(layer).register_forward_hook(lambda m, x, y: y * float("inf") if runner.iter >= 4 else y)
        where = f"the output of {layer} is the first that is not finite"
    elif wrong == "weight":

        def overflow(module, inputs):
            if runner.iter == 4:
                torch.nn.init.constant_(module.bias, float("inf"))

        model.head.fc.register_forward_pre_hook(overflow)
        where = "the weights of head.fc.bias are not finite"
    else:
        patches = model.backbone.embedding.patch_norm
        patches.register_forward_hook(lambda m, x, y: y / 0 if runner.iter >= 4 else y)
        where = "the output of backbone.embedding.patch_norm is the first that is not finite"
    with pytest.raises(RunStoppedError, match=f"at iteration 7 .*3 of at most 3 in a row; {where}: try a smaller"):
        runner.train()
    newest = max(tmp_path.glob("epoch_*.pth"), key=lambda path: path.stat().st_mtime_ns)
    assert newest.name == "epoch_0_iter_4.pth"
    assert all(value.isfinite().all() for value in read_checkpoint(newest)["state_dict"].values())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (dict(global_batch_size=64), "took 10 steps an epoch, this run takes 5: resume with the same global_batch"),
        (dict(randomness__seed=5), "is of a run with randomness.seed=0, this one has 5"),
        (dict(ema_momentum=0.1), "is of a run without averaged weights .*, this one is with"),
        (dict(optim_wrapper__optimizer__type="AdamW"), "is of a run with Lion, this one has AdamW"),
    ],
)
def test_a_resume_that_would_mix_two_recipes_is_refused(tmp_path, debug_checkpoint, changed, message):
    shutil.copy(debug_checkpoint, tmp_path)
    with pytest.raises(ValueError, match=message):
        train(tmp_path, resume=True, **changed)


@pytest.mark.slow
def test_a_resumed_run_follows_its_config(tmp_path):
    train(tmp_path, train_cfg__max_epochs=1)
    resumed = train(tmp_path, resume=True, optim_wrapper__optimizer__weight_decay=0.05)
    assert resumed["optimizer"]["param_groups"][0]["weight_decay"] == 0.05
    logs = "".join(log.read_text() for log in tmp_path.glob("*/*.log"))  # one file, if both started in one second
    assert "the schedule was for 10 iterations and is now for 20" in logs


@pytest.mark.slow
def test_a_run_without_a_schedule_resumes(tmp_path):
    train(tmp_path, train_cfg__max_epochs=1, param_scheduler=None)
    assert train(tmp_path, resume=True, param_scheduler=None)["meta"]["epoch"] == 2


def test_nothing_left_to_train_is_said(tmp_path, debug_checkpoint, caplog):
    shutil.copy(debug_checkpoint, tmp_path)
    train(tmp_path, resume=True, train_cfg__max_epochs=1, param_scheduler__end=1)
    (log,) = tmp_path.glob("*/*.log")
    assert "nothing is left to train" in log.read_text()


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


def test_an_optimizer_at_its_own_learning_rate(tmp_path):
    assert train(tmp_path, optim_wrapper__optimizer=dict(type="AdamW"))["meta"]["optimizer"] == "AdamW"
    (log,) = tmp_path.glob("*/*.log")
    assert "AdamW, learning rate 0.001 " in log.read_text()


def test_save_best_must_be_a_metric(tmp_path):
    with pytest.raises(RunStoppedError, match="save_best 'eval/top2' is no metric: did you mean eval/top"):
        train(tmp_path, default_hooks__checkpoint__save_best="eval/top2")


def test_checkpoints_are_where_resume_looks(tmp_path):
    with pytest.raises(ValueError, match="leave out by_epoch"):
        train(tmp_path, default_hooks__checkpoint__by_epoch=False)


def test_checkpoints_are_written_in_one_piece(tmp_path, monkeypatch):
    written = []
    put = AtomicBackend.put
    monkeypatch.setattr(AtomicBackend, "put", lambda self, obj, path: (written.append(path), put(self, obj, path)))
    train(tmp_path, train_cfg__max_epochs=1)
    files = {p for p in tmp_path.iterdir() if p.is_file() and p.suffix != ".py" and p.name != ".lock"}
    assert {Path(path) for path in written} == files


def test_a_different_model_of_the_same_shapes_is_warned_of(tmp_path, debug_checkpoint):
    cfg = load_config("debug", {"model.backbone.ista_lambda": 0.3, "model.head.pool": "mean"})
    cfg.work_dir, cfg.load_from = str(tmp_path), str(debug_checkpoint)
    Runner.from_cfg(cfg).test()
    (log,) = tmp_path.glob("*/*.log")
    assert "was trained with backbone.ista_lambda=0.1, the config has 0.3" in log.read_text()
    assert "was trained with head.pool='cls', the config has 'mean'" in log.read_text()


def test_classes_are_compared_by_name(tmp_path, debug_checkpoint, monkeypatch):
    from crate_mm.datasets import Digits

    original = Digits.__init__

    def renamed(self, split="train"):
        original(self, split)
        if split == "test":
            self.classes = [*"012345678", "nine"]

    monkeypatch.setattr(Digits, "__init__", renamed)
    with pytest.raises(ValueError, match="class 9 is 9 in training data and nine in the validation data"):
        train(tmp_path)
    cfg = load_config("debug")
    cfg.work_dir, cfg.load_from = str(tmp_path / "test"), str(debug_checkpoint)
    with pytest.raises(ValueError, match=r"class 9 is 9 in .*epoch_1.pth and nine in the test data"):
        Runner.from_cfg(cfg).test()


def test_a_gpu_process_wraps_its_model_on_its_gpu(monkeypatch):
    """No GPU here: what reaches PyTorch is looked at instead."""
    from types import SimpleNamespace

    from crate_mm.engine import runner as module

    seen = {}
    monkeypatch.setattr(module, "get_device", lambda: "cuda")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(module, "MMDistributedDataParallel", lambda **kwargs: seen.update(kwargs))
    model = SimpleNamespace(to=lambda device: device)
    Runner.wrap_model(SimpleNamespace(distributed=True, cfg={}), None, model)
    assert (seen["module"], seen["device_ids"], seen["find_unused_parameters"]) == ("cuda", [3], False)


def test_classes_must_match_the_head(tmp_path):
    with pytest.raises(ValueError, match=r"10 classes \(0, 1, 2, ...\), the head 7: .*num_classes=10 makes them agree"):
        train(tmp_path, model__head__num_classes=7)


def test_leftovers_of_a_killed_write_are_removed(tmp_path):
    """And what others have left in the folder is not, whatever its name."""
    others = ["download.bin.part", "epoch_1.pth.part", ".mine.0123abcd.part"]
    for name in (".epoch_1.pth.0123abcd.part", ".best_eval_top1_epoch_3.pth.0123abcd.part", *others):
        (tmp_path / name).touch()
    (tmp_path / "packed.part").mkdir()
    train(tmp_path, train_cfg__max_epochs=1)
    assert {p.name for p in tmp_path.iterdir() if p.name.endswith(".part")} == {"packed.part", *others}


@pytest.mark.slow
def test_only_the_newest_checkpoints_and_the_best_are_kept(tmp_path):
    train(tmp_path, train_cfg__max_epochs=5, default_hooks__checkpoint__max_keep_ckpts=2)
    assert sorted(p.name for p in tmp_path.glob("epoch_*")) == ["epoch_4.pth", "epoch_5.pth"]
    assert len(list(tmp_path.glob("best_*"))) == 1


@pytest.mark.slow
def test_a_copied_work_folder_leaves_the_original_alone(tmp_path):
    train(tmp_path / "a", train_cfg__max_epochs=1)
    (original,) = (tmp_path / "a").glob("best_*")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    cfg_epochs = 6
    train(tmp_path / "b", resume=True, train_cfg__max_epochs=cfg_epochs, optim_wrapper__optimizer__lr=3e-3)
    assert original.exists()
    (best,) = (tmp_path / "b").glob("best_*")
    assert best.name != original.name  # it did improve, and replaced its own copy


def test_unreadable_images_are_reported_and_limited(tmp_path, image_tree):
    files = sorted((image_tree / "train").rglob("*.JPEG"))
    broken = [files[0], files[2]]
    for file in broken:
        file.write_bytes(b"")
    overrides = {
        "data_root": str(image_tree),
        "model.head.num_classes": 3,
        "model.backbone.img_size": 32,
        "model.backbone.patch_size": 8,
        "global_batch_size": 6,
        "train_cfg.max_epochs": 1,
        "train_dataloader.num_workers": 1,
        "val_dataloader.num_workers": 0,
        "train_dataloader.dataset.transforms.0.size": 32,
        "val_dataloader.dataset.transforms.1.size": 32,
    }
    for limit in (2, 1):
        cfg = load_config("crate_tiny_in1k", {**overrides, "train_dataloader.dataset.max_unreadable": limit})
        cfg.model.backbone.arch = dict(embed_dim=24, depth=1, num_heads=3)
        cfg.work_dir = str(tmp_path / str(limit))
        runner = Runner.from_cfg(cfg)
        if limit == 2:
            runner.train()
            (log,) = (tmp_path / "2").glob("*/*.log")
            for file in broken:
                assert f"cannot read train image {file} (cannot identify image file" in log.read_text()
            assert "(2 of at most 2)" in log.read_text()
        else:
            with pytest.raises(RunStoppedError, match=r"2 train images cannot be read.*max_unreadable=1"):
                runner.train()


def test_averaged_weights_start_from_the_loaded_ones(tmp_path, debug_checkpoint):
    """``load_from`` in a config, with averaging: the average starts at the backbone that was taken over."""
    checkpoint = train(
        tmp_path,
        load_from=str(debug_checkpoint),
        ema_momentum=1e-6,
        optim_wrapper__optimizer__lr=1e-9,
        train_cfg__max_epochs=1,
    )
    source = read_checkpoint(debug_checkpoint)["state_dict"]
    for key, value in checkpoint["state_dict"].items():
        close = torch.allclose(value, source[key], atol=1e-4)
        assert close or key.startswith("head."), key
    assert not torch.allclose(checkpoint["state_dict"]["head.fc.weight"], source["head.fc.weight"], atol=1e-4)
    assert checkpoint["meta"]["initialized_from"] == str(debug_checkpoint)


def test_a_model_that_cannot_be_traced_still_trains(tmp_path, monkeypatch):
    from crate_mm.engine import results

    def fail(*args):
        raise RuntimeError("no tracing")

    monkeypatch.setattr(results, "count_complexity", fail)
    train(tmp_path, train_cfg__max_epochs=1)
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["flops"], result["parameters"] > 0) == (None, True)
