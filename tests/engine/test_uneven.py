"""A batch that does not divide: shares and micro-batches of other sizes, and the same steps as with equal ones."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from crate_mm.config import load_config, plan_batch, resolve_config
from crate_mm.engine.loading.chunks import split_batch
from crate_mm.engine.parallel.micro_batches import check_weights
from crate_mm.models import ImageClassifier
from crate_mm.registry import MODELS
from tests.training import SGD, debug_runner, log_of, scalars_of, train, train_on_processes

LOGS = {"default_hooks__logger__interval": 1}
VIEWS = dict(gradient_as_bucket_view=True, bucket_cap_mb=1)  # options of PyTorch's that change nothing


@pytest.fixture(scope="module", autouse=True)
def double():
    """All in float64, in the processes too, where 32 samples' weights show at a part in a thousand and rounding not."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("uneven")


@pytest.fixture(scope="module")
def one(folder) -> dict:
    """Ten steps of one process on batches of 32."""
    return train(folder / "one", **SGD, ema_momentum=0.1, **LOGS)


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in scalars_of(folder) if "lr" in row]


def assert_same_steps(checkpoint: dict, expected: dict) -> None:
    assert checkpoint["meta"]["iter"] == expected["meta"]["iter"] == 10
    for part in ("state_dict", "ema_state_dict"):
        for key, value in expected[part].items():
            assert value.dtype in (torch.float64, torch.int64)
            torch.testing.assert_close(checkpoint[part][key], value, rtol=1e-10, atol=1e-12, msg=f"{part} {key}")


@pytest.mark.slow
def test_uneven_shares_take_the_same_steps(one, folder, tmp_path):
    options = dict(zero=True, ddp=VIEWS, max_batch_per_device=4)
    several = train_on_processes(3, tmp_path, ema_momentum=0.1, **LOGS, **options)
    assert_same_steps(several, one)
    assert losses(tmp_path) == pytest.approx(losses(folder / "one"), rel=1e-9)
    said = "effective batch 32 = 3 processes x 10 or 11 in 3 micro-batches of 3 or 4 images"
    assert said in log_of(tmp_path)


@pytest.mark.slow
def test_uneven_micro_batches_take_the_same_steps(tmp_path):
    """31 is no product."""
    options = dict(ema_momentum=0.1, global_batch_size=31, **SGD, **LOGS)
    at_once = train(tmp_path / "at_once", **options)
    accumulated = train(tmp_path / "accumulated", max_batch_per_device=8, **options)
    assert_same_steps(accumulated, at_once)
    assert losses(tmp_path / "accumulated") == pytest.approx(losses(tmp_path / "at_once"), rel=1e-9)
    said = "effective batch 31 = 1 process x 31 in 4 micro-batches of 7 or 8 images"
    assert said in log_of(tmp_path / "accumulated")


@pytest.mark.slow
def test_a_run_goes_on_on_fewer_processes_within_an_epoch(one, tmp_path):
    train_on_processes(4, tmp_path / "four", ema_momentum=0.1, default_hooks__checkpoint__every_iters=6)
    within = tmp_path / "four" / "epoch_0_iter_6.pth"
    resumed = train_on_processes(3, tmp_path / "three", ema_momentum=0.1, resume=within)
    assert_same_steps(resumed, one)
    assert "was trained on 4 processes and resumes on 3: the batches are the same" in log_of(tmp_path / "three")


def test_equal_parts_are_not_weighted(tmp_path):
    """As before there were weights, to the last bit."""
    runner = debug_runner(tmp_path, max_batch_per_device=8, train_cfg__max_epochs=1)
    runner.build_for_training()
    batch = {"inputs": torch.zeros(32, 1), "labels": torch.arange(32)}
    assert runner.train_loop._weights(split_batch(batch, 4)) == [1.0] * 4
    assert runner.train_loop._weights(split_batch(batch, 3)) == [30 / 32, 33 / 32, 33 / 32]


def test_parts_differ_by_one_at_most():
    batch = {"inputs": torch.arange(11), "name": [str(i) for i in range(11)]}
    parts = split_batch(batch, 3)
    assert [part["inputs"].tolist() for part in parts] == [[0, 1, 2], [3, 4, 5, 6], [7, 8, 9, 10]]
    assert [name for part in parts for name in part["name"]] == batch["name"]


def test_a_sampler_of_a_users_own_is_refused():
    own = {"global_batch_size": 32, "train_dataloader.sampler.type": "DefaultSampler"}
    message = r"32 = 3 processes x 10 or 11: only GlobalBatchSampler supports unequal .* set global_batch_size=30 or 33"
    with pytest.raises(ValueError, match=message):
        resolve_config(load_config("debug", own), world_size=3)
    assert resolve_config(load_config("debug", own), world_size=4).train_dataloader.batch_size == 8


def test_an_optim_wrapper_that_weights_nothing_is_refused(tmp_path):
    cfg = {"optim_wrapper__type": "mmengine.OptimWrapper", "max_batch_per_device": 8}
    with pytest.raises(ValueError, match="OptimWrapper does not weight losses by their samples.*size=28 or 32"):
        debug_runner(tmp_path, **cfg, global_batch_size=31).build_for_training()
    debug_runner(tmp_path / "even", **cfg, global_batch_size=32).build_for_training()


def test_mixing_within_one_image_is_refused_before_the_first_step(tmp_path):
    """Else some processes would fail at it, and the others wait for them."""
    runner = debug_runner(tmp_path, model__batch_augments=[dict(type="MixUp")])
    runner.build_for_training()
    parts = (runner.task, runner.train_loop, runner.optim_wrapper)
    with pytest.raises(ValueError, match=r"5 = 3 processes x 1 or 2: batch_augments mixes each image with another"):
        check_weights(plan_batch(5, 3), *parts)
    check_weights(plan_batch(8, 3), *parts)


@pytest.mark.parametrize("batch", [dict(global_batch_size=1), dict(global_batch_size=8, max_batch_per_device=1)])
def test_mixing_where_every_micro_batch_holds_one_image_is_refused_as_it_is_built(tmp_path, batch):
    message = r"batch_augments mixes each image with another of its micro-batch, and each holds one image"
    with pytest.raises(ValueError, match=message):
        debug_runner(tmp_path, model__batch_augments=[dict(type="CutMix")], **batch).build_for_training()
    erased = [dict(type="BatchRandomErasing")]
    debug_runner(tmp_path / "erased", model__batch_augments=erased, **batch).build_for_training()


# What a task counts --------------------------------------------------------------------------------------------------


@MODELS.register_module()
class PartlyLabelled(ImageClassifier):
    """A classifier of samples of which two in three have a label. Its loss is the mean over these."""

    @staticmethod
    def has_label(sample_idx):
        return sample_idx.double().sin() < 0.5

    def count(self, batch):
        return int(self.has_label(batch["sample_idx"]).sum())

    def loss(self, inputs, labels, sample_idx, **_):
        labels = labels.where(self.has_label(sample_idx), -1)
        total = F.cross_entropy(self.tensor(inputs), labels, ignore_index=-1, reduction="sum")
        return {"loss": total / (labels >= 0).sum().clamp(min=1)}


COUNTED = {"model__type": "PartlyLabelled"}


@pytest.fixture(scope="module")
def one_counted(folder) -> dict:
    return train(folder / "one_counted", **SGD, ema_momentum=0.1, **LOGS, **COUNTED)


@pytest.mark.parametrize(
    ("processes", "options"),
    [(3, {"max_batch_per_device": 4, "zero": True}), (1, {"max_batch_per_device": 8})],
)
@pytest.mark.slow
def test_losses_are_weighted_by_what_the_task_counts(one_counted, folder, tmp_path, processes, options):
    options = {**LOGS, **COUNTED, "ema_momentum": 0.1, **options}
    several = train_on_processes(processes, tmp_path, **options)
    assert_same_steps(several, one_counted)
    assert losses(tmp_path) == pytest.approx(losses(folder / "one_counted"), rel=1e-9)


def test_equal_counts_are_not_weighted(tmp_path):
    runner = debug_runner(tmp_path, max_batch_per_device=8, train_cfg__max_epochs=1, **COUNTED)
    runner.build_for_training()
    idx = torch.arange(8).repeat(4)
    assert runner.train_loop._weights(split_batch({"sample_idx": idx}, 4)) == [1.0] * 4
    without = torch.full((8,), 2)  # sin 2 is above 0.5
    assert runner.train_loop._weights([{"sample_idx": without}] * 2) == [0.0] * 2
    assert runner.train_loop._weights([{"sample_idx": without}, {"sample_idx": idx[:8]}]) == [0.0, 2.0]


def test_a_loop_or_wrapper_that_weights_nothing_is_refused_for_a_count_of_ones_own(tmp_path):
    cfg = {"optim_wrapper__type": "mmengine.OptimWrapper", **COUNTED}
    message = r"32 = 1 process x 32 in 4 micro-batches of 8: OptimWrapper does not weight losses by the count of Partly"
    with pytest.raises(ValueError, match=message):
        debug_runner(tmp_path / "split", **cfg, max_batch_per_device=8).build_for_training()
    debug_runner(tmp_path / "whole", **cfg).build_for_training()
