"""What a run draws at its start follows from the seed that its checkpoints keep, also with a seed of each process."""

import shutil

import pytest

from crate_mm.engine import Runner, load_config
from tests.training import assert_identical, train, train_on_processes


@pytest.mark.parametrize("seed", [0, None])
@pytest.mark.slow
def test_a_seed_of_each_process_resumes_exactly(tmp_path, seed):
    options = dict(randomness__diff_rank_seed=True, randomness__seed=seed)
    whole = train(tmp_path / "whole", train_cfg__max_epochs=2, **options)
    (tmp_path / "part").mkdir()
    shutil.copy(tmp_path / "whole" / "epoch_1.pth", tmp_path / "part")
    resumed = train(tmp_path / "part", resume=True, train_cfg__max_epochs=2, **options)
    assert_identical(whole["state_dict"], resumed["state_dict"])


@pytest.mark.slow
def test_processes_with_seeds_of_their_own_deal_from_one_order(tmp_path):
    """The model draws nothing after its start: so the steps are those of processes with one seed."""
    one = train_on_processes(2, tmp_path / "one")
    each = train_on_processes(2, tmp_path / "each", randomness__diff_rank_seed=True)
    assert_identical(one["state_dict"], each["state_dict"])


def test_a_samplers_own_seed_stays(tmp_path):
    cfg = load_config("debug", {"train_dataloader.sampler.seed": 7, "randomness.seed": 3})
    cfg.work_dir = str(tmp_path)
    runner = Runner.from_cfg(cfg)
    runner.build_for_training()
    assert (runner.train_dataloader.sampler.seed, runner.seed) == (7, 3)
