"""Images that are broken, odd or gone; workers that die."""

import io
import multiprocessing
import os
import re
import shutil
import signal
import struct
import time
import warnings
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crate_mm.engine import Runner, load_config, newest_checkpoint, read_checkpoint
from crate_mm.registry import DATASETS
from tests.conftest import make_image_tree
from tests.faults.test_interruptions import at_step
from tests.training import FewDigits, assert_same_states, debug_config, log_of


def encoded(image: Image.Image, kind: str = "JPEG") -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def bomb() -> bytes:
    """A PNG of 60 bytes that says it has 40,000 million pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 200_000, 200_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")


COLOUR = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8))
BROKEN = {
    "truncated": lambda: encoded(COLOUR)[:-400],
    "empty": lambda: b"",
    "text": lambda: b"<html>404 Not Found</html>",
    "header": lambda: encoded(COLOUR)[:20],
    "bomb": bomb,
    "png": lambda: encoded(COLOUR, "PNG")[:-200],
}
ODD = {
    "cmyk": lambda: encoded(COLOUR.convert("CMYK")),
    "gray": lambda: encoded(COLOUR.convert("L")),
    "16-bit": lambda: encoded(Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50), "PNG"),
    "palette": lambda: encoded(COLOUR.convert("P"), "PNG"),
    "alpha": lambda: encoded(COLOUR.convert("RGBA"), "PNG"),
}


@pytest.fixture
def bad_tree(tmp_path) -> tuple[Path, set[str]]:
    """120 images, of each kind of broken and odd ones 5 %; and the names of the broken ones."""
    root = make_image_tree(tmp_path / "imagenet", train=40)
    files = sorted((root / "train").rglob("*.JPEG"))
    rng = np.random.default_rng(1)
    kinds = [kind for kind in [*BROKEN, *ODD] for _ in range(6)]
    broken = set()
    for number, kind in zip(rng.permutation(len(files)), kinds):
        files[number].write_bytes({**BROKEN, **ODD}[kind]())
        if kind in BROKEN:
            broken.add(str(files[number]))
    return root, broken


def build(root: Path, work_dir: Path, transform: str, **overrides) -> Runner:
    options = {
        "data_root": str(root),
        "model.head.num_classes": 3,
        "model.backbone.img_size": 32,
        "model.backbone.patch_size": 16,
        "global_batch_size": 24,
        "train_cfg.max_epochs": 2,
        "param_scheduler.warmup": 1,
        "train_dataloader.num_workers": 1,
        "val_dataloader.num_workers": 0,
        "val_dataloader.dataset.transforms.1.size": 32,
        **overrides,
    }
    cfg = load_config("crate_tiny_in1k", options)
    first = dict(type=transform, size=32, interpolation="bicubic")
    cfg.train_dataloader.dataset.transforms = [first, *cfg.train_dataloader.dataset.transforms[1:]]
    cfg.model.backbone.arch = dict(embed_dim=24, depth=1, num_heads=3)
    cfg.work_dir = str(work_dir)
    newest = newest_checkpoint(work_dir)
    if newest:
        cfg.resume, cfg.load_from = True, str(newest)
    return Runner.from_cfg(cfg)


@pytest.mark.parametrize("transform", ["RandomResizedCrop", "DecodeRandomResizedCrop"])
@pytest.mark.slow
def test_broken_images_of_each_kind_are_reported_exactly(tmp_path, bad_tree, transform):
    root, broken = bad_tree
    assert len(broken) == 36
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL's of large and of damaged images
        build(root, tmp_path / "run", transform, **{"model.label_smoothing": 0.1}).train()
    assert read_checkpoint(tmp_path / "run" / "epoch_2.pth")["meta"]["iter"] == 10
    reported = re.findall(r"cannot read train image (\S+) \(", log_of(tmp_path / "run"))
    assert len(reported) == len(set(reported))
    assert set(reported) == broken


class FailsOnce(FewDigits):
    """Digits of which one cannot be read the first time, and counts of all reads."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = Counter()

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        self.reads[index] += 1
        if index == 7 and self.reads[index] == 1:
            raise OSError("the disk\nhiccuped")
        return super().__getitem__(index)


@pytest.mark.parametrize("max_batch", [None, 8])
def test_the_reason_is_of_the_first_read_and_nothing_is_read_twice(tmp_path, max_batch):
    DATASETS.register_module(module=FailsOnce, force=True)
    cfg = debug_config(train_cfg__max_epochs=1, max_batch_per_device=max_batch)
    cfg.train_dataloader.dataset.source = dict(type="FailsOnce")
    cfg.work_dir = str(tmp_path)
    runner = Runner.from_cfg(cfg)
    runner.train()
    source = runner.train_dataloader.dataset.source
    # 8 took the place of the unreadable 7, and 0 was also read to compare its shape with the model's.
    assert source.reads == Counter(range(320)) + Counter([0, 8])
    assert "cannot read train image digit" in log_of(tmp_path)
    assert r"(the disk\nhiccuped); another sample takes its place (1 of at most 100)" in log_of(tmp_path)


@pytest.mark.slow
def test_a_data_root_that_vanishes_stops_the_run_with_a_checkpoint(tmp_path):
    root, options = make_image_tree(tmp_path / "imagenet", train=80), {"train_cfg.max_epochs": 1}
    build(root, tmp_path / "whole", "RandomResizedCrop", **options).train()
    runner = build(root, tmp_path / "run", "RandomResizedCrop", **options)
    at_step(runner, 4, lambda: root.rename(tmp_path / "gone"))
    with pytest.raises(
        RuntimeError, match=r"UnreadableImagesError: 101 images in a row cannot be read: .*No such file"
    ):
        runner.train()
    newest = newest_checkpoint(tmp_path / "run")
    assert re.fullmatch(r"epoch_0_iter_[4-9].pth", newest.name)
    (tmp_path / "gone").rename(root)
    build(root, tmp_path / "run", "RandomResizedCrop", **options).train()
    assert_same_states(*(tmp_path / name / "epoch_1.pth" for name in ("whole", "run")))


@pytest.mark.slow
def test_a_worker_that_dies_is_named(tmp_path):
    root = make_image_tree(tmp_path / "imagenet", train=80)
    runner = build(root, tmp_path / "run", "RandomResizedCrop")
    killed = []

    def kill_worker():
        killed.extend(process.pid for process in runner.train_dataloader._iterator._workers)
        os.kill(killed[0], signal.SIGKILL)

    at_step(runner, 4, kill_worker)
    with pytest.raises(RuntimeError, match=r"DataLoader worker \(pid\(?s?\)? \d+\)"):
        runner.train()
    assert killed
    shutil.rmtree(root)


@pytest.mark.slow
def test_workers_end_by_sigterm_only_after_a_time_of_grace():
    """Where their process is about to take its step and save; and at once where it is about to end."""
    from crate_mm.datasets import workers

    def work(ready):
        workers.GRACE = 1
        workers.init_worker(0)
        ready.set()
        while True:
            signal.pause()

    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=work, args=(ready,))
    process.start()
    ready.wait(10)
    start = time.monotonic()
    os.kill(process.pid, signal.SIGINT)
    process.terminate()
    process.join(10)
    assert process.exitcode == -signal.SIGALRM
    assert time.monotonic() - start > 0.9
    workers._exit_flag.mine[0] = 1
    try:
        ready.clear()
        process = context.Process(target=work, args=(ready,))
        process.start()
        ready.wait(10)
        process.terminate()
        process.join(10)
        assert process.exitcode == 0
    finally:
        workers._exit_flag.mine[0] = 0
