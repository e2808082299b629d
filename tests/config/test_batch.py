import pytest

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
        (2048, 16, 512, 128, 1),  # less than half of what a device takes
        (2048, 1024, 512, 2, 1),
    ],
)
def test_plan(batch, processes, most, per_device, micro_batches):
    plan = plan_batch(batch, processes, most)
    assert (plan.per_device, plan.micro_batches) == (per_device, micro_batches)
    assert plan.world_size * plan.micro_batches * plan.micro_batch_size == batch
    assert most is None or plan.micro_batch_size <= most


def test_a_batch_that_does_not_divide_names_the_nearest():
    with pytest.raises(ValueError, match="2048 does not divide over 3 processes; the nearest that do: 2046 and 2049"):
        plan_batch(2048, 3)
    with pytest.raises(ValueError, match="the nearest that do: 16"):
        plan_batch(5, 16)


def test_a_batch_without_good_micro_batches_names_the_nearest():
    with pytest.raises(ValueError, match=r"127 images, .* at most 64 .* nearest that do: 126 and 128"):
        plan_batch(127, 1, 64)
    assert plan_batch(126, 1, 64).micro_batch_size == 63


@pytest.mark.parametrize(("batch", "most"), [(0, None), (-8, None), (8, 0), (64.5, None), (8, "abc")])
def test_nonsense_is_refused(batch, most):
    with pytest.raises(ValueError, match="must be a whole number of at least 1"):
        plan_batch(batch, 1, most)


@pytest.mark.parametrize("processes", [1, 3, 8])
@pytest.mark.parametrize("most", [None, 7, 50])
def test_the_named_batches_are_the_nearest_that_work(processes, most):
    def works(batch):
        try:
            return plan_batch(batch, processes, most) is not None
        except ValueError:
            return False

    for batch in range(1, 300):
        if not works(batch):
            with pytest.raises(ValueError, match="the nearest that do") as refused:
                plan_batch(batch, processes, most)
            named = [int(word) for word in str(refused.value).rpartition(": ")[2].split(" and ")]
            assert all(works(n) for n in named)
            between = range(min(named) + 1 if len(named) == 2 else 1, max(named))
            assert not any(works(n) for n in between), batch
