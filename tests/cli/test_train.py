"""``train``, by running it."""

import argparse
import csv
import json
import os
import re
import signal
import time
import zipfile
from collections import Counter

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

import crate_mm.config.load
import crate_mm.engine.checkpointing.runner
import crate_mm.engine.runner
from crate_mm.cli.train import configure
from crate_mm.config import load_config
from crate_mm.engine import newest_checkpoint, read_checkpoint
from tests.conftest import ROOT, start


@pytest.mark.slow
def test_train_test_and_resume(run_tool, tmp_path):
    run = tmp_path / "run"
    done = run_tool("train", "debug", "--work-dir", run, "--cfg-options", "train_cfg.max_epochs=1")
    assert done.code == 0, done.output
    assert "effective batch 128 = 1 process x 128" in done.output
    assert (run / "debug.py").is_file()

    done = run_tool("train", "debug", "--work-dir", run, "--resume", "--cfg-options", "train_cfg.max_epochs=2")
    assert done.code == 0, done.output
    assert "resumed epoch: 1, iter: 10" in done.output
    assert "Epoch(train) [1]" not in done.output

    figures, rows = tmp_path / "figures.json", tmp_path / "rows.csv"
    # The dumped config is one that the tools take.
    done = run_tool("test", run / "debug.py", run / "epoch_2.pth", "--json", figures, "--out", rows)
    assert done.code == 0, done.output
    figures = json.loads(figures.read_text())
    assert figures.keys() == {"config", "checkpoint", "top1", "top5", "mean_class", "loss", "num_samples"}
    assert figures["num_samples"] == 450
    table = list(csv.DictReader(rows.open()))
    assert [int(row["sample_idx"]) for row in table] == list(range(450))
    assert 100 * sum(row["label"] == row["top1"] for row in table) / 450 == pytest.approx(figures["top1"])
    assert all(float(row["score1"]) >= float(row["score2"]) for row in table)
    assert f"top1 {figures['top1']:.4f}" in done.output


@pytest.mark.slow
def test_resume_of_nothing_starts_and_a_probe_of_nothing_is_warned_of(run_tool, tmp_path):
    args = ("--resume", "--linear-probe", "--cfg-options", "train_cfg.max_epochs=1")
    done = run_tool("train", "debug", "--work-dir", tmp_path, *args)
    assert done.code == 0, done.output
    assert "nothing to resume" in done.output
    assert "the frozen backbone has random weights" in done.output
    assert (tmp_path / "epoch_1.pth").exists()


@pytest.mark.slow
def test_linear_probe(run_tool, debug_checkpoint, tmp_path):
    args = ("debug", "--work-dir", tmp_path, "--linear-probe", "--load-from", debug_checkpoint)
    done = run_tool("train", *args, "--cfg-options", "train_cfg.max_epochs=1")
    assert done.code == 0, done.output
    before, after = (read_checkpoint(file)["state_dict"] for file in (debug_checkpoint, tmp_path / "epoch_1.pth"))
    for key, value in after.items():
        assert torch.equal(value, before[key]) == key.startswith("backbone."), key
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["kind"] == "linear probe"
    assert result["trainable_parameters"] == sum(v.numel() for k, v in after.items() if k.startswith("head."))

    done = run_tool("train", *args, "--resume", "--cfg-options", "train_cfg.max_epochs=2")
    assert done.code == 0, done.output
    assert "resumed epoch: 1" in done.output
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["epochs"], result["finished"]) == (2, True)
    assert result["initialized_from"] == str(debug_checkpoint), "a resume is not a new start"


MODEL_OF_THE_CHECKPOINT = """
_base_ = ["{configs}/_base_/datasets/digits.py", "{configs}/_base_/schedules/small_adamw.py",
          "{configs}/_base_/default_runtime.py"]
model = dict(head=dict(num_classes=10, pool="mean"))
global_batch_size = 449
train_cfg = dict(max_epochs=1)
"""


@pytest.fixture
def reads(monkeypatch, tmp_path):
    """Count what the tools, which are forked, read and start: a counter of (what, name of the file)."""
    log = tmp_path / "reads.log"

    def note(*entry):
        with log.open("a") as file:
            file.write(json.dumps([str(part) for part in entry]) + "\n")

    def noted(owner, name, entry):
        function = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, **kwargs: (note(*entry(*args)), function(*args, **kwargs))[1])

    noted(torch, "load", lambda file: ("load", file))
    noted(zipfile.ZipFile, "testzip", lambda archive: ("sums", os.readlink(f"/proc/self/fd/{archive.fp.fileno()}")))
    noted(crate_mm.config.load, "_load_file", lambda path: ("config", path))
    noted(crate_mm.engine.runner, "init_distributed", lambda *_: ("processes", ""))
    noted(crate_mm.engine.checkpointing.runner, "dump", lambda cfg, path: ("dump", path))

    def counts() -> Counter:
        entries = [tuple(json.loads(line)) for line in log.read_text().splitlines()]
        log.unlink()
        return Counter(entries)

    return counts


@pytest.mark.parametrize("names_model", [True, False])
@pytest.mark.slow
def test_each_file_is_read_once(run_tool, debug_checkpoint, reads, tmp_path, names_model):
    """The checkpoint to start or resume from and the config, whether or not the checkpoint says the model."""
    config, run = tmp_path / "own.py", tmp_path / "run"
    config.write_text(
        f"_base_ = {str(ROOT / 'configs' / 'debug.py')!r}\ntrain_cfg = dict(max_epochs=1)\n"
        if names_model
        else MODEL_OF_THE_CHECKPOINT.format(configs=ROOT / "configs")
    )
    written = {("config", str(config)): 1, ("processes", ""): 1, ("dump", str(run / "own.py")): 1}
    done = run_tool("train", config, "--work-dir", run, "--load-from", debug_checkpoint)
    assert done.code == 0, done.output
    found = reads()
    once = {(what, str(debug_checkpoint)): 1 for what in ("load", "sums")} | written
    assert {key: found[key] for key in once} == once
    newest = str(run / "epoch_1.pth")
    done = run_tool("train", config, "--work-dir", run, "--resume", "--cfg-options", "train_cfg.max_epochs=2")
    assert done.code == 0, done.output
    found = reads()
    once = {(what, newest): 1 for what in ("load", "sums")} | written
    assert {key: found[key] for key in once} == once
    assert str(debug_checkpoint) not in {file for _, file in found}


@pytest.mark.slow
def test_ctrl_c(tmp_path):
    args = ("debug", "--work-dir", tmp_path / "run", "--cfg-options", "train_cfg.max_epochs=200")
    log = tmp_path / "log"
    process = start(ROOT / "tools" / "train.py", args, log, ROOT, {})
    end = time.monotonic() + 60
    while not (log.exists() and re.search(r"Epoch\(train\) +\[2\]", log.read_text())) and time.monotonic() < end:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    process.kill()
    assert process.exitcode == 130, log.read_text()
    newest = newest_checkpoint(tmp_path / "run")
    assert log.read_text().strip().splitlines()[-1] == (
        f"stopped by SIGINT, the newest checkpoint is {newest}; --resume continues from there"
    )


@pytest.mark.slow
def test_processes_that_cannot_start_say_so_once(tmp_path, run_processes):
    options = ("--work-dir", tmp_path, "--cfg-options", "global_batch_size=2")
    done = run_processes("train", "debug", *options, processes=3, ends_others=True)
    assert done.code == 2
    sentence = "error: global_batch_size 2 has fewer images than the 3 processes: use a batch of at least 3, or at most"
    assert done.output.count(sentence) == 1, done.output
    assert "Traceback" not in done.output


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("crate_mae_mini_fashion_mnist", "needs a task .*: MaskedAutoencoder has no argument freeze_backbone"),
        ("simdino_crate_mini_fashion_mnist", "needs a task .*: SelfDistillation has no argument freeze_backbone"),
        (Config({"param_scheduler": [{"type": "ConstantLR"}]}), "sets param_scheduler.warmup, but the config has a"),
    ],
)
def test_a_probe_that_cannot_be_is_refused(config, message):
    args = argparse.Namespace(config=config, model=None, linear_probe=True)
    with pytest.raises(ValueError, match=f"--linear-probe {message}"):
        configure(args)


@pytest.mark.slow
def test_own_images_need_their_folder_alone(run_tool, debug_checkpoint, tmp_path):
    """The checkpoint is of gray images of 8 x 8 pixels; three classes of ten images are given."""
    for label, name in enumerate(("cat", "dog", "fish")):
        (tmp_path / "mine" / name).mkdir(parents=True)
        for number in range(10):
            pixels = np.random.default_rng(number).integers(80 * label, 80 * label + 80, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "mine" / name / f"{number}.png")
    run = ("train", "transfer/folder", "--load-from", debug_checkpoint, "--work-dir", tmp_path / "run")
    options = ("--cfg-options", f"data_root={tmp_path / 'mine'}", "train_cfg.max_epochs=1")
    done = run_tool(*run, "--dry-run", *options)
    assert re.search(
        r"^dry run: every check has passed; without --dry-run, [\d,]+ parameters of ImageClassifier are trained on 24 "
        rf"samples of 3 classes, from the weights of {debug_checkpoint}; the results go to {tmp_path / 'run'}$",
        done.last_line,
    )
    assert not (tmp_path / "run").exists()
    done = run_tool(*run, *options)
    assert done.code == 0, done.output
    assert "model.head.num_classes=3, the classes of the training data: cat, dog, fish" in done.output
    assert "global_batch_size=24, all training samples in each step, because the recipe's batch of 512" in done.output
    saved = load_config(tmp_path / "run" / "folder.py")
    assert (saved.model.head.num_classes, saved.global_batch_size) == (3, 24)
    assert saved.train_dataloader.dataset.transforms[:3] == [
        dict(type="ConvertChannels", channels=1),
        dict(type="Resize", size=(8, 8)),
        dict(type="RandomCrop", size=(8, 8), padding=1),
    ]
    done = run_tool("test", "transfer/folder", tmp_path / "run" / "epoch_1.pth", *options[:2])
    assert done.code == 0, done.output
    assert "num_samples 6" in done.last_line
    done = run_tool(*run, *options, "model.head.num_classes=5")
    assert done.code == 2
    assert "the data has 3 classes (cat, dog, fish, ...), the head 5: set --cfg-options" in done.last_line
    name = "train_dataloader.dataset.transforms"
    done = run_tool(
        *run[:4], "--work-dir", tmp_path / "refused" / "run", *options, f"{name}=[dict(type='Resize', size=9)]"
    )
    assert done.code == 2
    assert done.last_line == (
        "error: train_dataloader gives images of 3 x 9 x 9 (channels, height, width), the backbone CRATE takes 1 x 8 x "
        "8: add dict(type='Grayscale') and dict(type='Resize', size=(8, 8)) to its transforms, or set in_channels "
        "and img_size of the backbone, mean and std"
    )
    assert not (tmp_path / "refused").exists()
