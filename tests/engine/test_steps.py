"""What processes agree on at a step, and how long they wait for one another."""

import time

import pytest
import torch.distributed as dist

from crate_mm.engine.safety.agreement import Agreement, notice_hanging
from crate_mm.engine.safety.finite import PeerFailedError
from tests.training import on_processes


def say_things(rank: int) -> tuple[list, int]:
    agreement, gathered, heard = Agreement(), 0, []
    gather = dist.all_gather

    def count(*args, **kwargs):
        nonlocal gathered
        gathered += 1
        return gather(*args, **kwargs)

    dist.all_gather = count
    #              all silent; one speaks; another, while the first repeats itself; both; one has nothing more to say
    for a, b in [((0, 0), (0, 0))] * 3 + [((0, 0), (7, 0))] * 2 + [((2, 1), (7, 0))] * 2 + [((2, 1), (0, -1))] * 2:
        a, b = (a, b)[rank % 2]
        agreement.begin({"a": a, "b": b})
        heard.append(agreement.end({"a": 99, "b": 99}))  # what was said at the beginning counts
    return heard, gathered


@pytest.mark.slow
def test_all_hear_the_numbers_of_all_by_rank():
    results = on_processes(3, say_things)
    silent, one = {"a": [0, 0, 0], "b": [0, 0, 0]}, {"a": [0, 7, 0], "b": [0, 0, 0]}
    both, other = {"a": [2, 7, 2], "b": [1, 0, 1]}, {"a": [2, 0, 2], "b": [1, -1, 1]}
    for rank in range(3):
        heard, gathered = results[rank]
        assert heard == [silent] * 3 + [one] * 2 + [both] * 2 + [other] * 2
        assert gathered == 4  # once for each time that somebody said something new


def test_a_process_alone_hears_what_it_says_now():
    agreement = Agreement()
    agreement.begin({"signal": 0})
    assert agreement.end({"signal": 15}) == {"signal": [15]}


def wait_for_one_that_hangs(rank: int) -> tuple[str, float]:
    agreement = Agreement(timeout=2)
    agreement.begin({"a": 0})
    agreement.end({"a": 0})
    if rank == 1:
        time.sleep(30)
    start = time.monotonic()
    try:
        with notice_hanging(2):
            agreement.begin({"a": 0})
            agreement.end({"a": 0})
    except PeerFailedError as error:
        return str(error), time.monotonic() - start
    return "nothing was noticed", 0.0


@pytest.mark.slow
def test_a_process_that_hangs_is_noticed_within_the_timeout():
    ((rank, (said, seconds)),) = on_processes(2, wait_for_one_that_hangs, answers=1).items()
    assert rank == 0
    assert said.startswith("timed out after 2 s (env_cfg.dist_cfg.timeout")
    assert 1.5 < seconds < 15


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="a bug"), notice_hanging(2):
        raise RuntimeError("a bug")
