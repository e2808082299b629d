"""``test``, by running it."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from crate_mm import get_model
from crate_mm.datasets import Digits
from tests.conftest import make_image_tree


@pytest.mark.slow
def test_amp(run_tool, debug_checkpoint):
    plain, amp = (run_tool("test", "debug", debug_checkpoint, *options) for options in ((), ("--amp",)))
    assert plain.code == amp.code == 0
    assert plain.last_line != amp.last_line
    assert amp.last_line.startswith("top1 ")


@pytest.mark.slow
def test_four_processes_give_the_figures_of_one(debug_checkpoint, run_tool, run_processes, tmp_path):
    alone = run_tool("test", "debug", debug_checkpoint)
    # 450 samples over 4 processes: 2 are padded onto the last ranks.
    four = run_processes("test", "debug", debug_checkpoint, "--json", tmp_path / "4.json", processes=4)
    assert four.code == 0, four.output
    assert alone.last_line in four.output
    assert json.loads((tmp_path / "4.json").read_text())["num_samples"] == 450


@pytest.mark.slow
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
    assert min(Image.open(tmp_path / "confusion.png").size) > 400
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["tta"], result["seed"], result["kind"]) == ("flip", 0, "from scratch")
    assert result["last"]["top1"] == pytest.approx(100 * sum(right.values()) / 450)


@pytest.mark.slow
def test_a_folder_without_labels(run_tool, debug_checkpoint, tmp_path):
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
    assert done.last_line == f"predicted 9 images: {tmp_path / 'rows.csv'}"
    rows = list(csv.DictReader((tmp_path / "rows.csv").open()))
    assert run_tool(*both, "--out", tmp_path / "all.csv").code == 0
    labelled = list(csv.DictReader((tmp_path / "all.csv").open()))[:6]
    assert [Path(row["image"]).name for row in rows] == [
        *(f"{i}.png" for i in range(6)),
        *("7.png", "8.gif", "9.jpg"),
    ]
    assert [row["top1"] for row in rows[:6]] == [row["top1"] for row in labelled]
    assert {row["label"] for row in rows} == {""}


@pytest.mark.slow
def test_real(run_tool, tmp_path):
    """Two classes, four images by the names of ImageNet; one has no label, one two."""
    tree = make_image_tree(tmp_path / "imagenet", classes=2, train=1, val=2)
    for number, file in enumerate(sorted(tree.glob("val/*/*"), reverse=True), 1):
        file.rename(file.parent / f"ILSVRC2012_val_{number:08d}.JPEG")
    (tmp_path / "real.json").write_text(json.dumps([[0, 1], [], [1], [0]]))
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
