import pytest
from hypothesis import given
from hypothesis import strategies as st

from crate_mm.engine import plan_batch


@pytest.mark.parametrize(
    ("batch", "processes", "most", "per_device", "micro_batches"),
    [
        (2048, 16, None, 128, 1),
        (2048, 16, 128, 128, 1),
        (2048, 1, 256, 2048, 8),
        (2048, 2, 300, 1024, 4),
        (96, 1, 20, 96, 6),
        (7, 7, 1, 1, 1),
        (7, 1, 2, 7, 7),
        (126, 1, 64, 126, 2),
        (2048, 16, 512, 128, 1),  # less than half of what a device takes
        (2048, 1024, 512, 2, 1),
    ],
)
def test_plan(batch, processes, most, per_device, micro_batches):
    plan = plan_batch(batch, processes, most)
    assert (plan.per_device, plan.micro_batches) == (per_device, micro_batches)
    assert plan.world_size * plan.micro_batches * plan.micro_batch_size == batch
    assert most is None or plan.micro_batch_size <= most


@pytest.mark.parametrize(
    ("batch", "processes", "most", "said"),
    [
        (2048, 16, 64, "2048 = 16 processes x 128 in 2 micro-batches of 64"),
        (2048, 96, None, "2048 = 96 processes x 21 or 22"),
        (2048, 120, 12, "2048 = 120 processes x 17 or 18 in 2 micro-batches of 8 or 9"),
        (2048, 3, 256, "2048 = 3 processes x 682 or 683 in 3 micro-batches of 227 or 228"),
        (127, 1, 64, "127 = 1 process x 127 in 2 micro-batches of 63 or 64"),
        (5, 4, 2, "5 = 4 processes x 1 or 2"),
    ],
)
def test_a_batch_that_does_not_divide_is_spread_unevenly(batch, processes, most, said):
    assert str(plan_batch(batch, processes, most)) == said


@given(st.integers(1, 3000), st.integers(1, 300), st.integers(1, 300) | st.none())
def test_every_batch_is_spread_whole(batch, processes, most):
    if batch < processes:
        with pytest.raises(ValueError, match=f"{batch} has fewer images than the {processes} processes: use a batch"):
            plan_batch(batch, processes, most)
        return
    if most == 1 and batch > processes and batch % processes:
        with pytest.raises(
            ValueError, match=r"cannot be processed one image at a time.*max_batch_per_device=2 or glob"
        ):
            plan_batch(batch, processes, most)
        return
    plan = plan_batch(batch, processes, most)
    shares = [plan.batch_size_of(rank) for rank in range(processes)]
    assert sum(shares) == batch
    assert shares == sorted(shares, reverse=True)
    assert {min(shares), max(shares)} == set(plan.batch_sizes)
    parts = {
        len(range(n)[i * n // plan.micro_batches : (i + 1) * n // plan.micro_batches])
        for n in plan.batch_sizes
        for i in range(plan.micro_batches)
    }
    assert parts == set(plan.micro_batch_sizes)
    assert 1 <= min(parts) <= max(parts) <= min(parts) + 1
    assert most is None or max(parts) <= most


def test_the_batches_that_a_refusal_names_work():
    with pytest.raises(ValueError, match="max_batch_per_device=2 or global_batch_size=4 or 6$"):
        plan_batch(5, 2, 1)
    for batch, most in ((5, 2), (4, 1), (6, 1)):
        assert plan_batch(batch, 2, most).world_size == 2
    with pytest.raises(ValueError, match="use a batch of at least 16, or at most 5 processes"):
        plan_batch(5, 16)


@pytest.mark.parametrize(("batch", "most"), [(0, None), (-8, None), (8, 0), (64.5, None), (8, "abc")])
def test_nonsense_is_refused(batch, most):
    with pytest.raises(ValueError, match="must be a positive integer"):
        plan_batch(batch, 1, most)
