"""The command-line tools, by running them: what they do, and what they say to a mistake."""

import csv
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from crate_mm.engine import newest_checkpoint, read_checkpoint

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / "tools"


# What they do ------------------------------------------------------------------------------------------------------


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


def test_resume_starts_where_there_is_nothing_to_resume(run_tool, tmp_path):
    done = run_tool("train", "debug", "--work-dir", tmp_path, "--resume", "--cfg-options", "train_cfg.max_epochs=1")
    assert done.code == 0, done.output
    assert "nothing to resume" in done.output
    assert (tmp_path / "epoch_1.pth").exists()


@pytest.mark.slow
def test_one_short_epoch_of_the_imagenet_recipe(run_tool, image_tree, tmp_path):
    options = f"data_root={image_tree} train_cfg.max_epochs=1 global_batch_size=4 model.head.num_classes=3"
    options += " train_dataloader.num_workers=1 val_dataloader.num_workers=0"
    done = run_tool("train", "crate_tiny_in1k", "--work-dir", tmp_path / "run", "--cfg-options", *options.split())
    assert done.code == 0, done.output
    assert "3 steps an epoch" in done.output
    assert "Epoch(val) [1]" in done.output


def test_amp(run_tool, debug_checkpoint):
    plain, amp = (run_tool("test", "debug", debug_checkpoint, *options) for options in ((), ("--amp",)))
    assert plain.code == amp.code == 0
    assert plain.last_line != amp.last_line
    assert amp.last_line.startswith("top1 ")


@pytest.mark.slow
def test_dist_train_on_one_node_and_on_two(tmp_path):
    """All of them together, as each takes seconds to start."""
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}

    def start(folder: str, gpus: int, **more: str) -> subprocess.Popen:
        command = [TOOLS / "dist_train.sh", "configs/debug.py", str(gpus), "--work-dir", tmp_path / folder]
        command += ["--cfg-options", "train_cfg.max_epochs=1"]
        output = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return subprocess.Popen([str(c) for c in command], env={**env, **more}, cwd=ROOT, **output)

    runs = {"single": start("single", 2)}
    for rank in (0, 1):
        nodes = dict(NNODES="2", NODE_RANK=str(rank), MASTER_ADDR="127.0.0.1", PORT="29611")
        runs[f"node{rank}"] = start("nodes", 1, **nodes)
    outputs = {name: process.communicate(timeout=240)[0] for name, process in runs.items()}
    assert {process.returncode for process in runs.values()} == {0}, outputs
    assert "effective batch 128 = 2 processes x 64" in outputs["single"]
    assert "effective batch 128 = 2 processes x 64" in outputs["node0"]
    single, nodes = (read_checkpoint(tmp_path / name / "epoch_1.pth")["state_dict"] for name in ("single", "nodes"))
    assert all(torch.equal(single[key], nodes[key]) for key in single)


@pytest.mark.slow
def test_four_processes_give_the_figures_of_one(debug_checkpoint, run_tool, run_processes, tmp_path):
    alone = run_tool("test", "debug", debug_checkpoint)
    # 450 samples over 4 processes: 2 are padded onto the last ranks.
    four = run_processes("test", "debug", debug_checkpoint, "--json", tmp_path / "4.json", processes=4)
    assert four.code == 0, four.output
    assert alone.last_line in four.output
    assert json.loads((tmp_path / "4.json").read_text())["num_samples"] == 450


STAMP = Path(sys.prefix) / ".crate_mm-installed-test"


@pytest.mark.skipif(
    not STAMP.exists() or f"{ROOT}:" not in STAMP.read_text(),
    reason="tools/run_tests.sh set up no environment: quickstart.sh would install one",
)
@pytest.mark.slow
def test_quickstart(tmp_path):
    env = {**os.environ, "VIRTUAL_ENV": sys.prefix, "OMP_NUM_THREADS": "1"}
    command = ["bash", TOOLS / "quickstart.sh", tmp_path / "run", "--cfg-options", "train_cfg.max_epochs=1"]
    command += ["train_dataloader.dataset.source.split=test", "global_batch_size=225"]  # two steps
    done = subprocess.run([str(c) for c in command], env=env, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((tmp_path / "run" / "figures.json").read_text())
    assert f"{figures['top1']:.2f} % of 450 test images right" in done.stdout
    assert "parameters: 5.36 M" in done.stdout
    assert "Installing" not in done.stdout


def by_slurm(rank: int, tasks: int, port: int) -> dict[str, str]:
    """What srun tells a task, and where they meet."""
    told = {"NTASKS": tasks, "PROCID": rank, "LOCALID": rank, "NODELIST": "localhost"}
    meeting = {"MASTER_ADDR": "127.0.0.1", "PORT": str(port)}
    return {**{f"SLURM_{name}": str(value) for name, value in told.items()}, **meeting}


@pytest.mark.slow
def test_slurm_variables_start_processes(tmp_path, run_processes):
    """srun is not here: its variables are, and what slurm_train.sh hands it."""
    (tmp_path / "srun").write_text('#!/bin/sh\nprintf "%s\\n" "$@" >"$RECORD"\n')
    (tmp_path / "srun").chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "RECORD": str(tmp_path / "args"), "GPUS": "16"}
    subprocess.run([TOOLS / "slurm_train.sh", "gpu", "job", "configs/debug.py", "--amp"], env=env, check=True)
    args = (tmp_path / "args").read_text().split()
    assert {"--ntasks=16", "--ntasks-per-node=8", "--gres=gpu:8", "--partition=gpu", "--job-name=job"} <= set(args)
    assert args[-4:] == ["configs/debug.py", "--launcher", "slurm", "--amp"]

    options = ("--work-dir", tmp_path / "run", "--cfg-options", "train_cfg.max_epochs=1")
    done = run_processes("train", "debug", *options, launcher="slurm", variables=by_slurm)
    assert done.code == 0, done.output
    assert (tmp_path / "run" / "epoch_1.pth").exists()


def test_get_flops(run_tool, tmp_path):
    report = tmp_path / "report.json"
    done = run_tool("get_flops", "crate_tiny_in1k", "--shape", 64, 96, "--json", report)
    assert done.code == 0, done.output
    report = json.loads(report.read_text())
    assert report["input_shape"] == [1, 3, 64, 96]
    positions = 197 - (1 + 4 * 6)
    assert report["parameters"] == 6_090_856 - positions * 384
    assert f"{report['flops']:,}" in done.output


def test_convert_official(run_tool, tmp_path):
    from tests.models.test_foreign import official

    weights = {f"module.{key}": torch.randn(value.shape) for key, value in official().items()}
    torch.save({"epoch": 1, "state_dict": weights}, tmp_path / "official.pth")
    done = run_tool("convert_official", tmp_path / "official.pth", tmp_path / "ours.pth")
    assert done.code == 0, done.output
    assert "CRATE tiny" in done.output
    ours = read_checkpoint(tmp_path / "ours.pth")
    assert torch.equal(ours["state_dict"]["head.fc.weight"], weights["module.mlp_head.1.weight"])
    again = run_tool("convert_official", tmp_path / "official.pth", tmp_path / "ours.pth")
    assert (again.code, "exists: --force overwrites it" in again.last_line) == (2, True)
    other = run_tool("test", "debug", tmp_path / "official.pth")
    assert (other.code, "official.pth does not fit the model" in other.last_line) == (2, True)


@pytest.fixture
def official_checkpoint(tmp_path):
    """CRATE-Tiny on 32 x 32 images in the official code's names, small numbers inside."""
    from tests.models.test_foreign import official

    weights = {f"module.{key}": 0.05 * torch.randn(value.shape) for key, value in official().items()}
    torch.save({"epoch": 1, "state_dict": weights}, tmp_path / "official.pth")
    return tmp_path / "official.pth"


TINY_ON_DIGITS = """
_base_ = ["{configs}/_base_/models/crate.py", "{configs}/_base_/datasets/digits.py",
          "{configs}/_base_/schedules/in1k_lion.py", "{configs}/_base_/default_runtime.py"]
model = dict(backbone=dict(arch="tiny", img_size=16, patch_size=8), head=dict(num_classes=10))
rgb = [dict(type="Resize", size=16), dict(type="Grayscale", num_output_channels=3)]
train_dataloader = dict(dataset=dict(transforms=rgb))
val_dataloader = test_dataloader = dict(dataset=dict(transforms=rgb))
global_batch_size = 449
train_cfg = dict(max_epochs=1)
"""


@pytest.mark.slow
def test_fine_tuning_from_an_official_checkpoint(run_tool, official_checkpoint, tmp_path):
    """One command: recognised, converted, its head dropped, its position embeddings resized."""
    config = tmp_path / "tiny_on_digits.py"
    config.write_text(TINY_ON_DIGITS.format(configs=ROOT / "configs"))
    done = run_tool("train", config, "--work-dir", tmp_path / "run", "--load-from", official_checkpoint)
    assert done.code == 0, done.output
    assert "it has the names of the official CRATE code, which are translated" in done.output
    assert re.search(r"loaded +backbone\.blocks +96 tensors", done.output)
    assert re.search(r"resized +backbone\.embedding\.pos_embed +4 x 4 -> 2 x 2 patches, bicubic", done.output)
    assert re.search(r"dropped +head\.fc\.weight +7 x 384", done.output)
    assert re.search(r"new +head\.fc\.weight +10 x 384", done.output)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["model"], result["dataset"], result["kind"]) == ("crate_tiny", "Digits", "fine-tuning")
    assert result["initialized_from"] == str(official_checkpoint)
    assert result["last"]["epoch"] == 1
    assert {"parameters", "flops", "wall_time_s", "device", "versions", "seed", "config"} <= result.keys()


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


def test_a_probe_of_nothing_is_warned_of(run_tool, tmp_path):
    done = run_tool(
        "train", "debug", "--work-dir", tmp_path, "--linear-probe", "--cfg-options", "train_cfg.max_epochs=1"
    )
    assert "the backbone is frozen as it was initialised, at random" in done.output


def test_knn(run_tool, debug_checkpoint, tmp_path):
    done = run_tool("knn", "debug", debug_checkpoint, "--k", 5, "--work-dir", tmp_path)
    assert done.code == 0, done.output
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["kind"], result["k"], result["last"]["num_samples"]) == ("k-NN", 5, 450)

    from sklearn.neighbors import KNeighborsClassifier

    from crate_mm import init_model
    from crate_mm.engine import load_config
    from crate_mm.engine.features import build_loader
    from crate_mm.evaluation import extract_features

    model, cfg = init_model("debug", debug_checkpoint), load_config("debug")
    (train, labels, _), (test, truth, _) = (extract_features(model, build_loader(cfg, s)) for s in ("train", "test"))
    theirs = KNeighborsClassifier(5, metric="cosine", algorithm="brute").fit(train, labels)
    assert result["last"]["top1"] == pytest.approx(100 * theirs.score(test, truth), abs=0.5)  # ties by rounding


def test_reports_of_an_evaluation(run_tool, debug_checkpoint, tmp_path):
    files = {name: tmp_path / name for name in ("rows.csv", "classes.csv", "confusion")}
    done = run_tool(
        *("test", "debug", debug_checkpoint, "--work-dir", tmp_path, "--tta", "flip", "--out", files["rows.csv"]),
        *("--per-class", files["classes.csv"], "--confusion", files["confusion"]),
    )
    assert done.code == 0, done.output
    rows = list(csv.DictReader(files["rows.csv"].open()))
    right = {c: sum(r["label"] == r["top1"] == c for r in rows) for c in "0123456789"}
    total = {c: sum(r["label"] == c for r in rows) for c in "0123456789"}
    for row in csv.DictReader(files["classes.csv"].open()):
        assert int(row["samples"]) == total[row["name"]]
        assert float(row["top1"]) == pytest.approx(100 * right[row["name"]] / total[row["name"]])
    (_, *names), *matrix = csv.reader((tmp_path / "confusion.csv").open())
    assert names == [name for name, *_ in matrix] == list("0123456789")
    assert [sum(map(int, counts)) for _, *counts in matrix] == list(total.values())
    assert [int(counts[i]) for i, (_, *counts) in enumerate(matrix)] == list(right.values())
    from PIL import Image

    assert min(Image.open(tmp_path / "confusion.png").size) > 400
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["tta"], result["seed"], result["kind"]) == ("flip", 0, "from scratch")
    assert result["last"]["top1"] == pytest.approx(100 * sum(right.values()) / 450)


def test_a_folder_without_labels(run_tool, debug_checkpoint, tmp_path):
    import numpy as np
    from PIL import Image

    from crate_mm.datasets import Digits

    source, folder = Digits("test"), tmp_path / "images"
    folder.mkdir()
    for i in range(6):
        Image.fromarray(np.asarray(source[i][0])).save(folder / f"{i}.png")
    for name, mode in (("7.png", "RGBA"), ("8.gif", "P"), ("9.jpg", "CMYK")):
        Image.new(mode, (31, 20)).save(folder / name)
    (folder / "6.png").write_bytes(b"no image")
    both = ("test", "debug", debug_checkpoint, "--work-dir", tmp_path)
    done = run_tool(*both, "--folder", folder, "--out", tmp_path / "rows.csv")
    assert done.code == 0, done.output
    assert "6.png" in done.output
    assert "top1" not in done.last_line
    rows = list(csv.DictReader((tmp_path / "rows.csv").open()))
    assert run_tool(*both, "--out", tmp_path / "all.csv").code == 0
    labelled = list(csv.DictReader((tmp_path / "all.csv").open()))[:6]
    assert [Path(row["image"]).name for row in rows] == [f"{i}.png" for i in range(6)] + ["7.png", "9.jpg"]
    assert [row["top1"] for row in rows[:6]] == [row["top1"] for row in labelled]
    assert {row["label"] for row in rows} == {""}


def test_real(run_tool, tmp_path):
    """Two classes, four images by the names of ImageNet; one has no label, one two."""
    from tests.conftest import make_image_tree

    tree = make_image_tree(tmp_path / "imagenet", classes=2, train=1, val=2)
    for number, file in enumerate(sorted(tree.glob("val/*/*"), reverse=True), 1):
        file.rename(file.parent / f"ILSVRC2012_val_{number:08d}.JPEG")
    (tmp_path / "real.json").write_text(json.dumps([[0, 1], [], [1], [0]]))
    from crate_mm import get_model

    checkpoint = {"state_dict": get_model("crate_tiny", num_classes=2, img_size=32).state_dict()}
    torch.save(checkpoint, tmp_path / "crate.pth")
    done = run_tool(
        *("test", "crate_tiny_in1k", tmp_path / "crate.pth", "--work-dir", tmp_path, "--real", tmp_path / "real.json"),
        *("--out", tmp_path / "rows.csv", "--cfg-options", f"data_root={tree}", "model.head.num_classes=2"),
        *(
            "model.backbone.img_size=32",
            "test_dataloader.num_workers=0",
            "test_dataloader.dataset.transforms.1.size=32",
        ),
    )
    assert done.code == 0, done.output
    guesses = {Path(row["image"]).stem[-1]: row["top1"] for row in csv.DictReader((tmp_path / "rows.csv").open())}
    right = [True, guesses["3"] == "n00000001", guesses["4"] == "n00000000"]
    figures = json.loads((tmp_path / "result.json").read_text())["last"]
    assert figures["real/top1"] == pytest.approx(100 * sum(right) / 3)
    assert (figures["real/num_samples"], figures["num_samples"]) == (3, 4)


def test_results_table(run_tool, tmp_path):
    def leave(name, model, dataset, kind, top1, seed=0, **more):
        (tmp_path / name).mkdir()
        figures = {"top1": top1, **more.pop("figures", {})}
        result = dict(model=model, dataset=dataset, kind=kind, seed=seed, parameters=6_090_856, last=figures, **more)
        (tmp_path / name / "result.json").write_text(json.dumps(result))

    leave("a", "crate_tiny", "CIFAR10", "fine-tuning", 90.0, best=dict(top1=91.0))
    leave("b", "crate_tiny", "CIFAR10", "fine-tuning", 92.0, seed=1)
    leave("c", "crate_tiny", "CIFAR10", "fine-tuning", 94.0, seed=1, checkpoint="x.pth")  # a test of b
    leave("d", "vit_tiny", "ImageNet", "from scratch", 70.0, figures={"real/top1": 77.0}, checkpoint="y.pth")
    leave("e", "crate_tiny", "CIFAR10", "linear probe", 60.0, finished=False)
    done = run_tool("results_table", tmp_path)
    assert done.code == 0, done.output
    lines = done.output.splitlines()
    assert lines[0] == "| top-1, % | CRATE-Tiny | ViT-Tiny |"
    assert "| ImageNet | (66.7) | 70.00 (71.5) |" in lines
    assert "| ImageNet ReaL | (74.0) | 77.00 (78.3) |" in lines
    assert "| CIFAR10 | 92.00 (90.00 to 94.00, 2) (95.5) | (96.6) |" in lines
    assert "| CIFAR10, linear probe | 60.00\\* |  |" in lines
    assert "92.50 (91.00 to 94.00, 2)" in run_tool("results_table", tmp_path, "--figure", "best").output


def leave_result(folder, top1, run, seed=0, **more):
    folder.mkdir()
    recipe = {"max_epochs": 3, "optim_wrapper": {"optimizer": {"type": "Lion", "lr": 0.1}}, **more.pop("recipe", {})}
    result = dict(model="crate_tiny", dataset="Digits", kind="from scratch", seed=seed, run=run, recipe=recipe)
    metric = more.pop("metric", "top1")
    headline = {"metric": metric, "rule": "greater"}
    (folder / "result.json").write_text(json.dumps({**result, "headline": headline, "last": {metric: top1}, **more}))


def test_runs_are_told_apart_by_their_whole_recipe(run_tool, tmp_path):
    leave_result(tmp_path / "a", 90.0, "a")
    leave_result(tmp_path / "b", 92.0, "b", seed=1)
    leave_result(tmp_path / "c", 70.0, "c", recipe={"max_epochs": 1})
    other = {"optim_wrapper": {"optimizer": {"type": "Lion", "lr": 0.2}}}
    leave_result(tmp_path / "d", 80.0, "d", recipe=other)
    # A test of run a, by another config: a published file's, which is no further seed.
    leave_result(tmp_path / "e", 91.0, "a", seed=None, checkpoint="a.safetensors")
    done = run_tool("results_table", tmp_path)
    assert done.code == 0, done.output
    assert "| Digits, from scratch (max_epochs 3, lr 0.1) | 91.50 (91.00 to 92.00, 2) |" in done.output
    assert "| Digits, from scratch (max_epochs 1, lr 0.1) | 70.00 |" in done.output
    assert "| Digits, from scratch (max_epochs 3, lr 0.2) | 80.00 |" in done.output


def test_recipes_that_differ_deep_inside_have_rows_of_their_own(run_tool, tmp_path):
    for name, scale, top1 in (("a", 0.5, 10.0), ("b", 0.9, 90.0)):
        transforms = [{"type": "RandomResizedCrop", "size": 224, "ratio": [0.75, 1.3333333], "scale": [scale, 1.0]}] * 4
        leave_result(tmp_path / name, top1, name, recipe={"train_transforms": transforms})
    rows = [line for line in run_tool("results_table", tmp_path).output.splitlines() if line.startswith("| Digits")]
    assert sorted(row.split("|")[2].strip() for row in rows) == ["10.00", "90.00"]


def test_two_pretrainings_for_one_seed_are_two_recipes(run_tool, tmp_path):
    for name, seed, start in (("a", 0, "p0.pth"), ("b", 1, "p1.pth")):
        leave_result(tmp_path / name, 80.0 + seed, name, seed=seed, recipe={"initialized_from": start})
    assert "| Digits, from scratch | 80.50 (80.00 to 81.00, 2) |" in run_tool("results_table", tmp_path).output
    leave_result(tmp_path / "c", 60.0, "c", recipe={"initialized_from": "other.pth"})
    output = run_tool("results_table", tmp_path).output
    assert '| Digits, from scratch (initialized_from "other.pth") | 60.00 |' in output
    assert '| Digits, from scratch (initialized_from "p0.pth") | 80.00 |' in output


def test_another_headline_has_a_table_of_its_own(run_tool, tmp_path):
    leave_result(tmp_path / "a", 90.0, "a")
    leave_result(tmp_path / "b", 0.25, "b", metric="error")
    done = run_tool("results_table", tmp_path)
    assert "| top-1, % | CRATE-Tiny |" in done.output
    assert "| error | CRATE-Tiny |" in done.output
    assert "| Digits, from scratch | 0.25 |" in done.output


@pytest.mark.parametrize("tool", ["train", "test", "knn", "get_flops", "convert_official", "results_table"])
def test_help(run_tool, tool):
    done = run_tool(tool, "--help")
    assert done.code == 0
    assert f"python tools/{tool}.py" in done.output


# What they say to a mistake ----------------------------------------------------------------------------------------


class Mark:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def options(*pairs):
    return ["debug", "--cfg-options", *pairs]


MISTAKES = {
    "unknown arch": (
        ["train", *options("model.backbone.arch=huge")],
        "unknown arch 'huge': choose tiny, small, base, large",
    ),
    "unknown backbone": (
        ["train", *options("model.backbone.type=CRATTE")],
        "unknown backbone 'CRATTE': did you mean CRATE?",
    ),
    "unknown optimizer": (
        ["train", *options("optim_wrapper.optimizer.type=Lionn")],
        "unknown optimizer 'Lionn': did you mean",
    ),
    "unknown hook": (
        ["train", *options("default_hooks.mine=dict(type='SeedEchIteration')")],
        "unknown hook 'SeedEchIteration': did you mean SeedEachIteration",
    ),
    "unknown transform": (
        [
            "train",
            "crate_tiny_in1k",
            "--cfg-options",
            "train_dataloader.dataset.transforms.0.type=Resise",
            "data_root={tree}",
        ],
        "unknown transform 'Resise': did you mean Resize",
    ),
    "missing config": (
        ["train", "configs/crate_bas_in1k.py"],
        "configs/crate_bas_in1k.py does not exist: did you mean crate_base_in1k",
    ),
    "syntax error": (["train", "{tmp}/bad.py"], "bad.py, line 2 is not valid Python"),
    "misspelt option": (
        ["train", *options("train_cfg.max_epoch=1")],
        "train_cfg has no 'max_epoch': did you mean max_epochs",
    ),
    "option without value": (["train", *options("train_cfg")], "--cfg-options takes KEY=VALUE, got 'train_cfg'"),
    "missing data": (
        ["train", "crate_tiny_in1k", "--cfg-options", "data_root={tmp}/nowhere"],
        "data_root {tmp}/nowhere is no folder: expected {tmp}/nowhere/train/<class>/<image>.JPEG",
    ),
    "wrong layout": (["train", "crate_tiny_in1k", "--cfg-options", "data_root={tmp}"], "has no folder 'train'"),
    "few classes": (
        ["train", "crate_tiny_in1k", "--cfg-options", "data_root={tree}", "global_batch_size=4"],
        "the data has 3 classes (n00000000, n00000001, n00000002, ...), the head 1000",
    ),
    "small data": (
        ["train", "crate_tiny_in1k", "--cfg-options", "data_root={tree}"],
        "global_batch_size 2048 is more than the 12 training samples",
    ),
    "odd patch": (
        ["train", *options("model.backbone.patch_size=3")],
        "img_size 8 x 8 is not a whole number of patches of 3 x 3",
    ),
    "odd micro-batch": (
        ["train", *options("max_batch_per_device=100", "global_batch_size=127")],
        "the nearest that do: 126 and 128",
    ),
    "derived": (["train", *options("train_dataloader.batch_size=3")], "it follows from global_batch_size"),
    "wrong argument": (["train", *options("model.backbone.ista_lamda=3")], "did you mean ista_lambda"),
    "missing checkpoint": (["test", "debug", "{tmp}/none.pth"], "checkpoint {tmp}/none.pth does not exist"),
    "truncated checkpoint": (["test", "debug", "{tmp}/truncated.pth"], "truncated.pth is damaged or no checkpoint"),
    "other shapes": (
        ["test", "debug", "{checkpoint}", "--cfg-options", "model.backbone.arch.embed_dim=24"],
        "does not fit the model: backbone.embedding.cls_token is (1, 1, 48) there and (1, 1, 24) here",
    ),
    "hostile checkpoint": (
        ["test", "debug", "{tmp}/evil.pth"],
        "evil.pth is refused: loading it would run code of its own",
    ),
    "hostile official": (["convert_official", "{tmp}/evil.pth", "{tmp}/out.pth"], "evil.pth is refused"),
    "not official": (
        ["convert_official", "{checkpoint}", "{tmp}/out.pth"],
        "is not a checkpoint of the official CRATE code",
    ),
    "resume from weights": (
        ["train", "debug", "--work-dir", "{tmp}/w", "--resume", "{tmp}/weights.pth"],
        "cannot be resumed from",
    ),
    "no launcher": (["train", "debug", "--launcher", "pytorch"], "finds no RANK"),
    "no srun": (["train", "debug", "--launcher", "slurm"], "finds no SLURM_PROCID"),
    "bad output": (
        ["test", "debug", "{checkpoint}", "--json", "{tmp}/no/where.json"],
        "cannot write {tmp}/no/where.json",
    ),
    "no such start": (["train", "debug", "--load-from", "{tmp}/none.pth"], "checkpoint {tmp}/none.pth does not exist"),
    "start of another model": (
        ["train", *options("model.backbone.arch.embed_dim=24"), "--load-from", "{checkpoint}"],
        "is of another model: it fills 8 of the backbone's",
    ),
    "hostile start": (["train", "debug", "--load-from", "{tmp}/evil.pth"], "evil.pth is refused"),
    "hostile neighbours": (["knn", "debug", "{tmp}/evil.pth"], "evil.pth is refused"),
    "too many neighbours": (["knn", "debug", "{checkpoint}", "--k", "2000"], "k must be between 1 and the 1347"),
    "no neighbours": (["knn", "debug", "{checkpoint}", "--k", "0"], "a whole number of at least 1 is wanted, got '0'"),
    "missing benchmark": (
        ["train", "transfer/pets", "--model", "crate_tiny_in1k", "--cfg-options", "data_root={tmp}/nowhere"],
        "expected {tmp}/nowhere/oxford-iiit-pet/ with images/ and annotations/",
    ),
    "no real.json": (["test", "debug", "{checkpoint}", "--real", "{tmp}/real.json"], "real.json does not exist"),
    "folder without output": (["test", "debug", "{checkpoint}", "--folder", "{tree}"], "--folder needs --out FILE"),
    "folder with labels": (
        ["test", "debug", "{checkpoint}", "--folder", "{tree}", "--out", "{tmp}/x.csv", "--per-class", "{tmp}/y.csv"],
        "--per-class needs labels",
    ),
    "no results": (["results_table", "{tmp}/work"], "work is no folder"),
    "wrong shape": (["get_flops", "debug", "--shape", "9", "8"], "img_size 9 x 8 is not a whole number of patches"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_sentence(run_tool, debug_checkpoint, image_tree, tmp_path, mistake):
    (tmp_path / "bad.py").write_text("x = 1\ny = = 2")
    (tmp_path / "truncated.pth").write_bytes(debug_checkpoint.read_bytes()[:5000])
    torch.save({"state_dict": {}, "evil": Mark(str(tmp_path / "mark"))}, tmp_path / "evil.pth")
    torch.save({"state_dict": None}, tmp_path / "none_inside.pth")
    weights = read_checkpoint(debug_checkpoint)["state_dict"]
    torch.save({"state_dict": weights}, tmp_path / "weights.pth")
    places = dict(tmp=tmp_path, tree=image_tree, checkpoint=debug_checkpoint)
    (tool, *args), message = MISTAKES[mistake]
    args = [arg.format(**places) for arg in args]
    if tool == "train" and "--work-dir" not in args:
        args[1:1] = ["--work-dir", str(tmp_path / "work")]
    done = run_tool(tool, *args, timeout=60)
    assert done.code == 2, done.output
    assert "Traceback" not in done.output
    assert message.format(**places) in done.last_line, done.output
    assert "error: " in done.last_line
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((TOOLS / "dist_train.sh",), "usage: "),
        ((TOOLS / "dist_train.sh", "debug", "many"), "GPUS must be a whole number of at least 1, got 'many'"),
        ((TOOLS / "dist_test.sh", "debug", "4"), "usage: "),
        ((TOOLS / "slurm_train.sh", "gpu"), "usage: "),
        (
            ("env", "NNODES=2", TOOLS / "dist_train.sh", "debug", "2"),
            "NNODES=2 needs NODE_RANK (0 to 1, one a node) and",
        ),
    ],
)
def test_the_launchers_say_how_they_are_used(args, message):
    done = subprocess.run([str(a) for a in args], capture_output=True, text=True)
    assert done.returncode == 2
    assert message in done.stderr


def test_more_gpus_than_the_node_has(tmp_path):
    """A node with GPUs is not here: a python that counts 8 of them stands in for one."""
    (tmp_path / "python").write_text("#!/bin/sh\necho 8\n")
    (tmp_path / "python").chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run([str(TOOLS / "dist_train.sh"), "c.py", "12"], env=env, capture_output=True, text=True)
    assert done.returncode == 2
    assert "12 GPUs were asked for, this node has 8. Use several nodes, each running NNODES=2 NODE_RANK=" in done.stderr
    assert done.stderr.rstrip().endswith("dist_train.sh c.py 6")


@pytest.mark.slow
def test_ctrl_c(tmp_path):
    command = [
        sys.executable,
        TOOLS / "train.py",
        "debug",
        "--work-dir",
        tmp_path,
        "--cfg-options",
        "train_cfg.max_epochs=200",
    ]
    process = subprocess.Popen(
        [str(c) for c in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        # Background jobs of a shell start with Ctrl-C ignored, and pytest may be one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    for line in process.stdout:
        if re.search(r"Epoch\(train\) +\[2\]", line):
            break
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    newest = newest_checkpoint(tmp_path)
    assert error.strip().splitlines()[-1] == (
        f"stopped by SIGINT, the newest checkpoint is {newest}; --resume goes on from there"
    )


@pytest.mark.slow
def test_processes_that_cannot_start_say_so_once(tmp_path, run_processes):
    done = run_processes("train", "debug", "--work-dir", tmp_path, processes=3, ends_others=True)
    assert done.code == 2
    sentence = "error: global_batch_size 128 does not divide over 3 processes; the nearest that do: 126 and 129"
    assert done.output.count(sentence) == 1, done.output
    assert "Traceback" not in done.output


def test_a_pickle_is_what_the_hostile_files_are(tmp_path):
    pickle.loads(pickle.dumps(Mark(str(tmp_path / "mark"))))
    assert (tmp_path / "mark").exists()
    shutil.rmtree(tmp_path / "mark")
