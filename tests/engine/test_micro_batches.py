"""How a GPU's batch is split where the config does not say: by what passes take of its memory."""

from contextlib import nullcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crate_mm.engine import Runner
from crate_mm.engine.parallel import micro_batches
from crate_mm.engine.parallel.micro_batches import (
    as_of_many_samples,
    describe_split,
    fewest_micro_batches,
    is_split_invariant,
)
from crate_mm.models import ImageClassifier
from tests.training import debug_config


@given(st.integers(1, 600), st.booleans(), st.integers(0, 10**6), st.integers(1, 10**6), st.integers(1, 10**9))
def test_as_few_parts_as_fit(least, differ, fixed, each, free):
    shares = (least, least + differ)
    most = shares[1]

    def takes(samples):
        return fixed + each * samples

    if takes(1) > free or (differ and most > 1 and takes(2) > free):
        with pytest.raises(ValueError, match=r"only .* are free: use a smaller model or set activation_checkpointing"):
            fewest_micro_batches(shares, takes, free)
        return
    parts, taken, of_each = fewest_micro_batches(shares, takes, free)
    assert 1 <= parts <= least
    assert takes(-(-most // parts)) == taken <= free
    assert of_each == each
    fit = (free - fixed) // each
    if differ or most % parts:
        assert takes(-(-most // (parts - 1))) > free if parts > 1 else True
    else:  # equal ones, of at least half of what fits
        assert parts == 1 or 2 * (most // parts) >= fit
        assert all(takes(most // n) > free for n in range(1, parts) if most % n == 0)


def test_what_the_first_pass_takes_for_good_is_not_a_samples():
    """As cuBLAS's workspaces on a GPU, which the first pass alone makes."""
    seen = []

    def takes(samples):
        seen.append(samples)
        return 3 * samples + (64 if len(seen) == 1 else 0)

    assert fewest_micro_batches((4096, 4096), takes, 3072) == (4, 3072, 3)


@pytest.mark.parametrize("as_large", [True, False])
def test_the_bytes_of_a_sample_are_those_of_a_large_batch(as_large):
    """What a forward pass keeps, at 17 tokens: 4 and 8 samples are fewer than 2 x 48 tokens, and more."""
    task = ImageClassifier(dict(type="CRATE", **SMALL), HEAD)

    def kept(samples):
        sizes = {}

        def pack(tensor):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = task(torch.zeros(samples, 3, 32, 32))
        del output
        return sum(sizes.values())

    free = 10**9
    with as_of_many_samples(task) if as_large else nullcontext():
        parts, taken, _ = fewest_micro_batches((512, 512), kept, free)
    assert parts == 1
    assert (kept(512) <= taken) is as_large


HEAD = dict(type="LinearHead", num_classes=5)
SMALL = dict(arch=dict(embed_dim=48, depth=1, num_heads=3), img_size=32, patch_size=8)


@pytest.mark.parametrize(
    ("family", "augments", "alike"),
    [
        ("CRATE", [], True),
        ("CRATE", [dict(type="BatchRandomErasing", p=0.5)], True),
        ("CRATE", [dict(type="MixUp", alpha=0.8)], False),
        ("ToST", [], False),  # it has BatchNorm
    ],
)
def test_what_a_split_would_change_is_not_split(family, augments, alike):
    task = ImageClassifier(dict(type=family, **SMALL), HEAD, batch_augments=augments)
    assert is_split_invariant(task) is alike


@pytest.mark.gpu
def test_a_run_takes_no_more_than_was_foreseen(tmp_path, monkeypatch):
    cfg = debug_config(train_cfg__max_epochs=1, global_batch_size=256, compile_blocks=False)
    cfg.work_dir = str(tmp_path)
    free = 60_000_000
    monkeypatch.setattr(micro_batches, "free_bytes", lambda model: free)
    runner = Runner.for_training(cfg)
    assert runner.train_loop.micro_batches > 1
    assert runner.optim_wrapper._accumulative_counts == runner.train_loop.micro_batches
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    runner.train()
    assert torch.cuda.max_memory_allocated() - before < 1.2 * free


def test_the_largest_batch_that_fits_is_said():
    """1 GB and 0.1 GB a sample: of 5.05 GB, 40 samples fit."""
    free = 5_050_000_000
    found = fewest_micro_batches((64, 64), lambda count: 1_000_000_000 + 100_000_000 * count, free)
    assert found[:2] == (2, 4_200_000_000)
    assert describe_split(64, *found, free).endswith(
        "64 samples of a device are split into 2 micro-batches of 32, which need about 4.2 of 5.0 GB free memory, "
        "100.0 MB per sample; about 40 samples fit at once"
    )
