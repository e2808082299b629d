"""``browse``, by running it."""

import os

import numpy as np
import pytest
from PIL import Image

from crate_mm.cli.browse import panel
from crate_mm.engine import load_config
from crate_mm.extras.sample_preview import SamplePreview
from tests.conftest import make_image_tree


@pytest.mark.slow
def test_the_sheet_has_the_samples_pixels(run_main, tmp_path):
    out = tmp_path / "sheet.png"
    done = run_main("browse", "debug", "--number", 5, "--epoch", 2, "--out", out)
    assert done.last_line == f"wrote {out}: 5 samples"
    sheet = np.asarray(Image.open(out).convert("RGB"))
    for number, seen in enumerate(SamplePreview(load_config("debug")).epoch_samples(5, 2)):
        shown = np.asarray(seen.pixels[0]).repeat(20, 0).repeat(20, 1)[..., None]
        places = [(58 + row, 28 + 180 * column) for row in range(0, 500, 1) for column in range(3)]
        assert any(
            np.array_equal(sheet[y : y + 160, x : x + 160], np.broadcast_to(shown, (160, 160, 3))) for y, x in places
        ), number


def test_labels_and_their_shares(tmp_path):
    mixed = {"model.batch_augments": [{"type": "MixUp", "alpha": 0.8}]}
    samples = SamplePreview(load_config("debug", mixed))
    seen = next(seen for seen in samples.epoch_samples(20) if len(seen.labels) == 2)
    (one, share), (other, rest) = seen.labels
    assert share + rest == pytest.approx(1)
    lines = panel(seen, samples.classes, False).lines
    assert lines[:2] == [f"{one}  {100 * share:.0f} %", f"{other}  {100 * rest:.0f} %"]
    assert lines[2].startswith("digit ")


@pytest.mark.slow
def test_a_config_without_a_model_and_classes_of_any_name(run_main, tmp_path):
    data = make_image_tree(tmp_path / "data", classes=2)
    for split in ("train", "val"):
        (data / split / "n00000001").rename(data / split / os.fsdecode(b"$caf\xe9_{\n\x1b[31m"))
    next((data / "train" / "n00000000").iterdir()).write_bytes(b"broken")
    options = ("--cfg-options", f"data_root={data}", "global_batch_size=8")
    done = run_main("browse", "transfer/folder", "--number", 8, "--out", tmp_path / "train.png", *options)
    done = run_main("browse", "transfer/folder", "--split", "val", "--out", tmp_path / "val.pdf", *options)
    assert done.last_line.endswith("val.pdf: 4 samples")
    assert (tmp_path / "val.pdf").read_bytes().startswith(b"%PDF")
    cfg = load_config("transfer/folder", {"data_root": str(data), "global_batch_size": 8})
    replaced = [seen for seen in SamplePreview(cfg).epoch_samples(8) if seen.replaces]
    assert len(replaced) == 1
    assert "n00000000" in panel(replaced[0], ["a", "b"], False).lines[-1]


def test_it_is_written_to_the_work_folder(run_main, tmp_path):
    (tmp_path / "here").mkdir()
    run_main("browse", "debug", "--same", 7, "--number", 3, cwd=tmp_path / "here")
    assert [str(p.relative_to(tmp_path / "here")) for p in (tmp_path / "here").rglob("*.*")] == [
        "work_dirs/debug/browse_train.png"
    ]
