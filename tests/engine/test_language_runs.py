"""Runs of a language model: the same steps on any number of processes, resumed, used by the tools, and bad input."""

import json
import os
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from crate_mm.datasets.text import is_validation
from crate_mm.engine import RunInterruptedError, Runner, load_config, read_checkpoint
from crate_mm.inference.generate import TextGenerator
from crate_mm.registry import DATASETS
from tests.faults.test_interruptions import at_step
from tests.training import assert_same_states, log_of, result_of, scalars_of, train_on_processes

pytestmark = pytest.mark.slow
LENGTH, BATCH = 16, 29
ARCH = dict(embed_dim=24, depth=2, num_heads=3)
STEPS = 5  # within the third epoch


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    """Texts with 58 windows for training, two batches. The last window has 12 labels that count, the others 16."""
    folder, rows = tmp_path_factory.mktemp("texts"), np.random.default_rng(0).integers(97, 123, (40, 24))
    for number, row in enumerate(rows):
        (folder / f"{number}.txt").write_bytes(bytes(row.astype(np.uint8)))
    return folder


def config(texts, work_dir, **options):
    cfg = load_config(
        "causal_crate_mini_python",
        {
            "global_batch_size": BATCH,
            "train_cfg.max_epochs": None,
            "train_cfg.max_steps": STEPS,
            "default_hooks.logger.interval": 1,
            "model.backbone.arch": ARCH,
            "model.backbone.context_length": LENGTH,
            **{key.replace("__", "."): value for key, value in options.items()},
        },
    )
    cfg.optim_wrapper.optimizer = dict(type="SGD", lr=0.5, weight_decay=0.01)
    data = dict(type="TextFiles", root=str(texts), length=LENGTH)
    for split in ("train", "val", "test"):
        cfg[f"{split}_dataloader"].dataset = dict(data, split="train" if split == "train" else "val")
    cfg.val_dataloader.batch_size, cfg.work_dir = 3, str(work_dir)
    return cfg


def run(work_dir, launcher="none", texts=None, double=True, **options):
    torch.set_default_dtype(torch.float64 if double else torch.float32)
    try:
        cfg = config(texts, work_dir, **options)
        cfg.launcher = launcher
        Runner.from_cfg(cfg).train()
    finally:
        torch.set_default_dtype(torch.float32)


def last(folder):
    return read_checkpoint(max(folder.glob("epoch_*_iter_*.pth"), key=os.path.getmtime))


@pytest.fixture(scope="module")
def one(texts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    run(folder, texts=texts)
    return folder


def scalars(folder, key):
    return [row[key] for row in scalars_of(folder) if key in row]


@pytest.mark.parametrize(("processes", "options"), [(1, {"max_batch_per_device": 4}), (3, {})])
def test_any_number_of_processes_and_micro_batches_takes_the_same_steps(texts, one, tmp_path, processes, options):
    if processes == 1:
        run(tmp_path, texts=texts, **options)
    else:
        train_on_processes(processes, tmp_path, run, texts=texts, **options)
    expected, ours = last(one), last(tmp_path)
    assert ours["meta"]["iter"] == expected["meta"]["iter"] == STEPS
    for name, value in expected["state_dict"].items():
        torch.testing.assert_close(ours["state_dict"][name], value, rtol=1e-10, atol=1e-12, msg=name)
    for key in ("loss", "eval/loss", "eval/bits_per_byte"):
        assert scalars(tmp_path, key) == pytest.approx(scalars(one, key), rel=1e-9), key
    assert scalars(one, "loss")[-1] < scalars(one, "loss")[0]


def test_the_labels_of_an_epoch_count_once(texts):
    cfg = config(texts, "run")
    data = DATASETS.build(cfg.train_dataloader.dataset)
    labels = torch.stack([data[n]["labels"] for n in range(len(data))])
    assert (len(data), (labels != -100).sum(1).unique().tolist()) == (2 * BATCH, [12, 16])


def test_the_validation_is_the_mean_over_all_its_tokens(texts, one):
    names = sorted(path.name for path in texts.iterdir() if is_validation(path.name, 0.05))
    stream = torch.tensor(list(b"".join((texts / name).read_bytes() + b"\0" for name in names)))
    model = TextGenerator(str(max(one.glob("epoch_*_iter_*.pth")))).model.double()
    nats, begin = 0.0, 0
    while begin < len(stream) - 1:  # the last window overlaps the one before it
        start = min(begin, len(stream) - 1 - LENGTH)
        with torch.no_grad():
            log_p = model(stream[None, start : start + LENGTH], mode="tensor").log_softmax(-1)[0]
        new = range(begin - start, LENGTH)
        nats -= sum(log_p[n, stream[start + n + 1]].item() for n in new)
        begin += len(new)
    expected = nats / (len(stream) - 1)
    result = result_of(one)
    assert result["headline"] == {"metric": "loss", "rule": "less"}
    assert result["last"]["loss"] == pytest.approx(expected, rel=1e-5)
    assert result["last"]["bits_per_byte"] == pytest.approx(expected / np.log(2), rel=1e-5)


def test_a_run_that_is_interrupted_within_an_epoch_resumes_bit_by_bit(texts, tmp_path):
    def build(name, **options):
        cfg = config(texts, tmp_path / name, train_cfg__max_steps=7, **options)
        cfg.train_dataloader.dataset.random_windows = 5 * BATCH
        cfg.optim_wrapper.optimizer = dict(type="AdamW", lr=1e-2, weight_decay=0.1)
        return Runner.from_cfg(cfg)

    build("whole").train()
    runner = build("resumed")
    at_step(runner, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(RunInterruptedError, match="epoch_0_iter_3"):
        runner.train()
    build("resumed", resume=True, load_from=str(tmp_path / "resumed" / "epoch_0_iter_3.pth")).train()
    whole, resumed = last(tmp_path / "whole"), last(tmp_path / "resumed")
    assert_same_states(whole, resumed)
    assert resumed["meta"]["model"]["tokenizer"] == "bytes"


def test_a_run_that_is_resumed_on_another_text_warns(texts, one, tmp_path):
    other = shutil.copytree(texts, tmp_path / "texts")
    (other / "0.txt").write_text("longer" * 10)
    shutil.copytree(one, tmp_path / "run")
    load_from = str(max((tmp_path / "run").glob("epoch_*_iter_*.pth")))
    run(tmp_path / "run", texts=other, train_cfg__max_steps=STEPS + 1, resume=True, load_from=load_from)
    assert "train_data.bytes=925, now 961; train_data.tokens=925, now 961" in log_of(tmp_path / "run")


def test_the_tools_take_a_text_model(texts, one, tmp_path, run_tool):
    run(tmp_path / "run", texts=texts, double=False)
    checkpoint = max((tmp_path / "run").glob("epoch_*_iter_*.pth"))
    cfg, published = str(next((tmp_path / "run").glob("*.py"))), tmp_path / "text.safetensors"
    done = run_tool("publish", checkpoint, published)
    assert done.code == 0, done.output
    done = run_tool("test", cfg, published, "--json", tmp_path / "test.json", cwd=tmp_path)
    assert done.code == 0, done.output
    result = result_of(tmp_path / "run")
    assert json.loads((tmp_path / "test.json").read_text())["loss"] == pytest.approx(result["last"]["loss"], rel=1e-6)
    options = ("--prompt", "ab", "--max-tokens", 8, "--seed", 3)
    texts_out = [run_tool("generate", file, *options).output for file in (checkpoint, published)]
    assert texts_out[0] == texts_out[1]
    assert texts_out[0].startswith("ab")
    done = run_tool("get_flops", cfg)
    assert done.code == 0, done.output
    done = run_tool("export", "checkpoint", published, "--to", "torch-export", "--out", tmp_path / "text.pt2")
    assert done.code == 0, done.output
    assert "it takes windows of 16 token IDs, without a cache of earlier tokens, any number at a time" in done.last_line
    for tool, args in (("bench", (cfg,)), ("predict", (published, tmp_path))):
        done = run_tool(tool, *args)
        assert (done.code, "Traceback" in done.output) == (2, False), done.output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("tokens with an ID of 300", "has the token ID 300, but the backbone's vocabulary has 256 tokens"),
        ("a file cut off", "the file was truncated or replaced"),
        ("an odd length", "expected an even number for uint16"),
        ("a longer context", "gives windows of 17 tokens, but the backbone has 16 positions"),
    ],
)
def test_bad_input_is_refused_before_the_first_step(texts, tmp_path, change, message):
    cfg, file = config(texts, tmp_path / "run"), tmp_path / "train.bin"
    ids = np.arange(4000, dtype=np.uint16) % 200
    length = LENGTH + (change == "a longer context")
    if "300" in change:
        ids[321] = 300
    ids.tofile(file)
    if "odd" in change:
        file.write_bytes(file.read_bytes()[:-1])
    if "cut" in change:
        counts = dict.fromkeys(("vocab_size", "largest_id", "documents", "bytes"), 1)
        (tmp_path / "train.bin.json").write_text(json.dumps({**counts, "tokens": 4001, "tokenizer": "bytes"}))
    cfg.train_dataloader.dataset = dict(type="Windows", tokens="train.bin", root=str(tmp_path), length=length)
    with pytest.raises(ValueError, match=re.escape(message)):
        Runner.for_training(cfg)
