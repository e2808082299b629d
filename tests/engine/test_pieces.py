"""A large batch is built in pieces by the workers: the same batches, the same steps."""

import multiprocessing
import os
import re
import signal
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler, default_collate

from crate_mm.datasets import ClassificationDataset, Digits, GlobalBatchSampler, collate, init_worker
from crate_mm.datasets.base import samples_in
from crate_mm.engine import RunInterruptedError, Runner, load_config, newest_checkpoint
from crate_mm.engine.loading.chunks import ChunkedBatchSampler, chunk_loader, join, split_batch
from crate_mm.engine.loading.prefetch import Prefetcher
from crate_mm.registry import FUNCTIONS
from crate_mm.torch_private import end_workers
from tests.faults.test_interruptions import at_step
from tests.training import AUGMENT, assert_identical, assert_same_states, debug_config, log_of

FUNCTIONS.register_module(name="collate_of_a_user", module=lambda samples: collate(samples))


@pytest.mark.parametrize(
    ("size", "count", "expected"),
    [(2048, 2048, [256] * 8), (1000, 1000, [250] * 4), (257, 257, [128, 129]), (600, 700, [200, 200, 200, 100])],
)
def test_pieces_of_a_batch_are_of_one_size(size, count, expected):
    batches = BatchSampler(SequentialSampler(range(count)), size, drop_last=False)
    pieces = list(ChunkedBatchSampler(batches, 256))
    assert [len(piece) for piece in pieces] == expected
    assert [index for piece in pieces for index in piece] == list(range(count))


def loader_of(data, batch_size=30, **options) -> DataLoader:
    sampler = GlobalBatchSampler(data, batch_size, seed=3)
    return DataLoader(
        data, batch_size, sampler=sampler, num_workers=2, collate_fn=collate, worker_init_fn=init_worker, **options
    )


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.slow
def test_the_batches_are_those_of_the_loader(persistent):
    """Sample by sample, with their augmentation, in every epoch, and from the midst of one."""
    photographs = dict(type="FakeData", size=100, image_size=(3, 12, 14))
    loader = loader_of(ClassificationDataset(photographs, AUGMENT), drop_last=True, persistent_workers=persistent)
    pieces, count = chunk_loader(loader, 8)
    assert count == 4
    assert pieces.persistent_workers == persistent
    for epoch, start in ((0, 0), (1, 0), (1, 2)):
        loader.sampler.set_epoch(epoch)
        loader.sampler.start = start
        expected, ours = list(loader), list(Prefetcher(pieces, count))
        assert len(expected) == 3 - start
        assert_identical(ours, expected)
        assert ours[0]["inputs"].shape == (30, 3, 12, 14)
        assert ours[0]["inputs"].is_contiguous(memory_format=torch.channels_last)


def test_a_last_batch_may_be_smaller():
    data = ClassificationDataset(Digits("test"))
    loader = DataLoader(data, 200, num_workers=1, collate_fn=collate)
    ours = list(Prefetcher(*chunk_loader(loader, 64)))
    assert [len(batch["labels"]) for batch in ours] == [200, 200, 50]
    assert_identical(ours, list(loader))


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(10))


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(range(10), 8),
        DataLoader(range(10), 4, num_workers=1),
        DataLoader(range(10), 8, num_workers=1, collate_fn=lambda samples: samples),
        DataLoader(range(10), batch_sampler=[[1, 2, 3, 4, 5, 6, 7]], num_workers=1),
        DataLoader(range(10), None, num_workers=1),
        DataLoader(Stream(), 8, num_workers=1),
    ],
    ids=["no workers", "small", "own collate", "own batches", "no batches", "stream"],
)
def test_what_cannot_or_need_not_be_divided_stays(loader):
    same, count = chunk_loader(loader, 4)
    assert same is loader
    assert count == 1


def test_pieces_are_joined_whatever_samples_hold():
    samples = [
        {"inputs": torch.full((2, 3), i), "name": f"a{i}", "at": (i, float(i)), "more": {"x": i}, "list": [f"b{i}", i]}
        for i in range(7)
    ]
    parts = [samples[:3], samples[3:5], samples[5:]]
    joined, whole = join([default_collate(part) for part in parts]), default_collate(samples)
    whole["list"][0] = list(whole["list"][0])  # PyTorch's is a tuple here, and a list for strings by themselves
    assert_identical(joined, whole)
    assert joined["at"][1].dtype == torch.float64


def test_a_batch_is_split_whatever_it_holds():
    """Tensors and lists of samples are cut; lists of tensors of all samples, which are views, and dicts inside."""
    views = [torch.arange(8).view(8, 1, 1, 1), torch.arange(8).view(8, 1, 1, 1) + 10]
    batch = {"inputs": views, "labels": torch.arange(8), "names": list("abcdefgh"), "more": {"x": torch.arange(8)}}
    parts = split_batch(batch, 3)
    assert [samples_in(part) for part in parts] == [2, 3, 3]
    assert_identical(join(parts), batch)
    assert [len(part["inputs"]) for part in parts] == [2, 2, 2]
    apart = {"images": [torch.zeros(3, 4 + i, 4) for i in range(5)], "names": [], "labels": torch.arange(5)}
    assert [len(part["images"]) for part in split_batch(apart, 2)] == [2, 3]
    with pytest.raises(
        ValueError, match=r"tensors \(3, 4, 4\) may hold 3 samples or 3 views of them: set another glob"
    ):
        split_batch({"images": [torch.zeros(3, 4, 4)] * 3, "labels": torch.arange(3)}, 2)


@pytest.mark.gpu
def test_all_tensors_of_a_batch_move_to_the_gpu():
    batch = {"views": [torch.zeros(2, 3), (torch.ones(2), "a")], "more": {"x": torch.arange(2)}, "names": ["a", "b"]}
    (moved,) = Prefetcher([batch])
    assert moved["views"][0].is_cuda
    assert moved["views"][1][0].is_cuda
    assert moved["more"]["x"].is_cuda
    assert (moved["views"][1][1], moved["names"]) == ("a", ["a", "b"])


def test_what_fails_in_a_piece_is_known_a_step_before():
    def pieces():
        yield from ({"labels": torch.tensor([i])} for i in range(5))
        raise OSError("the disk is gone")

    batches = Prefetcher(pieces(), 2)
    seen = [(batch["labels"].tolist(), batches.error is not None) for batch in batches]
    assert seen == [([0, 1], False), ([2, 3], True)]
    other = Prefetcher([{"inputs": torch.zeros(1, size)} for size in (1, 2)], 2)
    assert list(other) == []
    assert "Sizes of tensors must match" in str(other.error)


class Counted(torch.utils.data.Dataset):
    """Counts, in memory that the workers share, how many samples have been built."""

    def __init__(self) -> None:
        self.built = multiprocessing.get_context("fork").Value("i", 0)

    def __len__(self) -> int:
        return 2000

    def __getitem__(self, index: int) -> dict:
        with self.built.get_lock():
            self.built.value += 1
        return {"inputs": torch.zeros(1, 4, 4, dtype=torch.uint8), "labels": index}


@pytest.mark.parametrize(("most", "ahead"), [(10, 220), (200, 800)])
@pytest.mark.slow
def test_what_is_under_way_is_a_batch_and_a_piece_a_worker(most, ahead):
    """Of 20 pieces of a batch two workers have 22 under way, so that a step finds its batch; of whole ones two each."""
    data = Counted()
    batches = Prefetcher(*chunk_loader(DataLoader(data, 200, num_workers=2, collate_fn=collate), most))
    taken = 200
    for _ in batches:
        taken += 200
        built, now = -1, data.built.value
        while built != now:
            time.sleep(0.2)
            built, now = now, data.built.value
        assert built == min(taken + ahead, 2000)
        if taken == 600:
            break
    end_workers(None, batches.loaded)


def run(work_dir: Path, collate_fn: str = "collate") -> Runner:
    """Train in pieces of 10 of 32 samples; with a user's collate function, in none."""
    cfg = debug_config(train_dataloader__num_workers=2)
    cfg.train_dataloader.collate_fn = dict(type=f"crate_mm.{collate_fn}")
    cfg.train_dataloader.dataset.transforms = AUGMENT
    cfg.work_dir = str(work_dir)
    newest = newest_checkpoint(work_dir)
    if newest:
        cfg.resume, cfg.load_from = True, str(newest)
    runner = Runner.from_cfg(cfg)
    runner.build_for_training()
    return runner


@pytest.fixture
def pieces_of_10(monkeypatch):
    monkeypatch.setattr(chunk_loader, "__defaults__", (10,))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(2))


@pytest.mark.slow
def test_training_takes_the_same_steps_and_resumes_exactly(tmp_path, pieces_of_10):
    whole, divided = run(tmp_path / "whole", collate_fn="collate_of_a_user"), run(tmp_path / "pieces")
    assert (whole.train_loop.chunks_per_batch, divided.train_loop.chunks_per_batch) == (1, 4)
    assert len(whole.train_dataloader) == len(divided.train_dataloader) == 10
    there = set(multiprocessing.active_children())
    whole.train()
    divided.train()
    assert set(multiprocessing.active_children()) == there
    expected = tmp_path / "whole" / "epoch_2.pth"
    assert_same_states(tmp_path / "pieces" / "epoch_2.pth", expected)
    first = run(tmp_path / "resumed")
    at_step(first, 17, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(RunInterruptedError, match="epoch_1_iter_17"):
        first.train()
    run(tmp_path / "resumed").train()
    assert_same_states(tmp_path / "resumed" / "epoch_2.pth", expected)


@pytest.mark.slow
def test_unreadable_images_are_reported_once(tmp_path, image_tree, pieces_of_10):
    files = sorted((image_tree / "train").rglob("*.JPEG"))
    broken = {str(files[2]), str(files[7])}
    for file in broken:
        open(file, "wb").close()
    options = {"data_root": str(image_tree), "global_batch_size": 12, "train_cfg.max_epochs": 2}
    cfg = load_config("crate_tiny_in1k", options)
    cfg.model.head.num_classes = 3
    cfg.model.backbone.update(arch=dict(embed_dim=24, depth=1, num_heads=3), img_size=32, patch_size=8)
    cfg.train_dataloader.update(num_workers=2)
    cfg.train_dataloader.dataset.transforms[0].size = 32
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    cfg.work_dir = str(tmp_path / "run")
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert runner.train_loop.chunks_per_batch == 2
    assert sorted(re.findall(r"cannot read train image (\S+) \(", log_of(tmp_path / "run"))) == sorted(broken)
