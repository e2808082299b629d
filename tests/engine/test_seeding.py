"""What a run draws at its start follows from the seed that its checkpoints keep, also with a seed of each process."""

import pytest

from tests.training import assert_same_states, debug_runner, train, train_on_processes


@pytest.mark.slow
def test_a_seed_of_each_process_resumes_exactly(tmp_path):
    options = dict(train_cfg__max_epochs=2, randomness__diff_rank_seed=True, randomness__seed=None)
    whole = train(tmp_path / "whole", **options)
    resumed = train(tmp_path / "part", resume=tmp_path / "whole" / "epoch_1.pth", **options)
    assert_same_states(whole, resumed)


@pytest.mark.slow
def test_processes_with_seeds_of_their_own_deal_from_one_order(two_processes, tmp_path):
    """The model draws nothing after its start: so the steps are those of processes with one seed."""
    each = train_on_processes(2, tmp_path, randomness__diff_rank_seed=True)
    assert_same_states(two_processes / "epoch_1.pth", each)


def test_a_samplers_own_seed_stays(tmp_path):
    runner = debug_runner(tmp_path, train_dataloader__sampler__seed=7, randomness__seed=3)
    runner.build_for_training()
    assert (runner.train_dataloader.sampler.seed, runner.seed) == (7, 3)
