"""``neighbours``, by running it, and what it is made of."""

import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from crate_mm import get_model, init_model
from crate_mm.cli.neighbours import default_queries, panels_of
from crate_mm.cli.predict import find_images
from crate_mm.datasets import Digits
from crate_mm.evaluation.knn import nearest
from crate_mm.inference.features import Features, extract
from crate_mm.inference.transforms import EvalTransform


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    digits = Digits("test")
    for number in range(12):
        digits[number][0].save(folder / f"{number:02d}.png")
    digits[3][0].save(folder / os.fsdecode(b"caf\xe9\n.png"))
    (folder / "broken.png").write_text("no image")
    return folder


def test_nearest_is_by_the_cosine_and_not_itself():
    torch.manual_seed(0)
    features, queries = torch.randn(50, 8, dtype=torch.float64), torch.randn(7, 8, dtype=torch.float64)
    rows, similarity = nearest(features, queries, 5, chunk=3)
    cosine = torch.nn.functional.cosine_similarity(queries[:, None], features[None], dim=-1)
    expected = cosine.sort(dim=1, descending=True)
    assert torch.equal(rows, expected.indices[:, :5])
    torch.testing.assert_close(similarity, expected.values[:, :5])
    itself = torch.tensor([4, -1, 9])
    rows, _ = nearest(features, features[[4, 5, 9]], 2, itself)
    assert 4 not in rows[0]
    assert rows[1, 0] == 5
    assert 9 not in rows[2]
    with pytest.raises(ValueError, match="k must be between 1 and the 49 images to choose from, got 50"):
        nearest(features, features, 50, torch.arange(50))


def test_the_features_and_their_paths(run_main, debug_checkpoint, photos, tmp_path):
    out = tmp_path / "features.npz"
    done = run_main("neighbours", debug_checkpoint, photos, "--out", out, "--batch", 5)
    assert done.last_line == f"wrote {out}: features of 13 of 14 images, 1 cannot be read"
    written = np.load(out)
    files = [file for file in find_images([str(photos)]) if file.name != "broken.png"]
    assert written["paths"].tolist() == [str(file) for file in files]
    assert written["unreadable"].tolist() == [str(photos / "broken.png")]
    assert written["reasons"][0].startswith("cannot identify image file")
    model = init_model(None, debug_checkpoint)
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(file)))[None] for file in files])
    with torch.no_grad():
        expected = model((pixels / 255 - 0.5) / 0.5, mode="features")
    torch.testing.assert_close(torch.from_numpy(written["features"]), expected, rtol=1e-4, atol=1e-5)


def test_the_sheet_has_a_row_for_each_that_is_asked_for(run_main, debug_checkpoint, photos, tmp_path):
    out = tmp_path / "sheet.png"
    shutil.copy(photos / "05.png", tmp_path / "asked.png")
    args = ("--query", tmp_path / "asked.png", photos / "07.png", photos / "broken.png", "--k", 2, "--out", out)
    done = run_main("neighbours", debug_checkpoint, photos, *args)
    assert done.output.count("broken.png: cannot be read: ") == 1
    sheet = np.asarray(Image.open(out).convert("RGB"))

    def at(row, column):
        top, left = 58 + row * (160 + 15 * 3 + 6 + 20), 28 + column * 180
        return sheet[top : top + 160, left : left + 160]

    def pixels(name):
        enlarged = np.asarray(Image.open(photos / name)).repeat(20, 0).repeat(20, 1)
        return np.broadcast_to(enlarged[..., None], (160, 160, 3))

    assert np.array_equal(at(0, 0), pixels("05.png"))
    assert np.array_equal(at(0, 1), pixels("05.png"))  # another file with the same image
    assert np.array_equal(at(1, 0), pixels("07.png"))
    assert not np.array_equal(at(1, 1), pixels("07.png"))  # the file itself
    assert (sheet[58 - 3, 100] == (0xB3, 0x26, 0x1E)).all()  # the frame
    assert sheet.shape[0] < 58 + 2 * 250


@pytest.mark.slow
def test_without_a_query_some_of_the_images_are_asked_for(run_main, debug_checkpoint, photos, tmp_path):
    run_main("neighbours", debug_checkpoint, photos, "--k", 3, "--out", tmp_path / "sheet.pdf")
    model = init_model(None, debug_checkpoint)
    found = extract(model, find_images([str(photos)]))
    asked = default_queries(found)
    assert [path.name for path in asked.paths][:3] == ["00.png", "01.png", "03.png"]
    assert len(asked.paths) == 8
    itself = torch.tensor([found.paths.index(path) for path in asked.paths])
    panels = panels_of(found, asked, itself, 3, EvalTransform(model))
    assert [panel.framed for panel in panels] == [True, False, False, False] * 8
    for start in range(0, 32, 4):
        names = [panel.lines[0] for panel in panels[start : start + 4]]
        assert len(set(names)) == 4
        cosines = [float(panel.lines[2].removeprefix("cosine ")) for panel in panels[start + 1 : start + 4]]
        assert cosines == sorted(cosines, reverse=True)


def test_features_are_those_of_any_batch_size(photos):
    torch.manual_seed(0)
    model = get_model("crate_tiny", num_classes=2, img_size=32)
    one, other = (extract(model, find_images([str(photos)]), batch_size=size) for size in (1, 64))
    assert one.paths == other.paths
    torch.testing.assert_close(one.rows, other.rows, rtol=1e-4, atol=1e-4)
    assert isinstance(one, Features)
