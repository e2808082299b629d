"""tools/report.py, by running it: several configs, images of a folder, and what it says to a mistake."""

import hashlib
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from crate_mm.cli.report import true_masks
from crate_mm.datasets import ClassificationDataset
from crate_mm.engine import CONFIGS
from crate_mm.extras.report.pack import unpack

pytestmark = pytest.mark.slow

VIT = """
_base_ = ["{debug}"]
arch = dict(embed_dim=24, depth=3, num_heads=2)
backbone = dict(_delete_=True, type="ViT", arch=arch, img_size={size}, patch_size=2, in_channels=1)
model = dict(backbone=backbone, head=dict(norm=False))
"""


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    """Configs of a ViT on the digits: as they are, for larger images than come, with other data, and enlarged."""
    folder = tmp_path_factory.mktemp("configs")
    (folder / "vit.py").write_text(VIT.format(debug=CONFIGS / "debug.py", size=8))
    (folder / "large.py").write_text(VIT.format(debug=CONFIGS / "debug.py", size=16))
    other = '\ntest_dataloader = dict(dataset=dict(source=dict(split="train")))\n'
    (folder / "other.py").write_text(VIT.format(debug=CONFIGS / "debug.py", size=8) + other)
    enlarged = '\ntest_dataloader = dict(dataset=dict(transforms=[dict(type="Resize", size=(64, 64))]))\n'
    large = VIT.format(debug=CONFIGS / "debug.py", size=64).replace("patch_size=2", "patch_size=32")
    (folder / "enlarged.py").write_text(large + enlarged)
    return folder


def data_of(file):
    return json.loads(re.search(r'id="report-data">(.*?)</script>', file.read_text(), re.S)[1])


def test_checkpoints_of_several_configs(run_main, configs, debug_checkpoint, tmp_path):
    args = ("debug", "random", debug_checkpoint, "--also", configs / "vit.py", "random", "--out", tmp_path / "a.html")
    done = run_main("report", *args, "--num-images", "30", "--shown", "4", "--title", "Two <families>")
    assert done.last_line == f"wrote {tmp_path}/a.html, {(tmp_path / 'a.html').stat().st_size / 1e6:.1f} MB"
    data = data_of(tmp_path / "a.html")
    assert [m["label"] for m in data["models"]] == ["debug: random", "debug: epoch_1", "vit: random"]
    assert [m["name"] for m in data["models"]] == ["CRATE", "CRATE", "ViT"]
    assert [m["data"] for m in data["models"]] == [0, 0, 1]
    assert (len(data["images"]), data["models"][2]["images"]) == (4, 30)
    assert data["datas"][0]["pictures"] == data["datas"][1]["pictures"]
    run = data["models"][1]["run"]
    assert run["sha256"] == hashlib.sha256(debug_checkpoint.read_bytes()).hexdigest()
    assert json.loads(run["model"])["backbone"]["type"] == "CRATE"
    assert data["run"]["settings"] | {"seed": 0, "num_images": 30, "shown": 4} == data["run"]["settings"]
    assert run["checkpoint"] == debug_checkpoint.name
    command = "crate-mm report debug random epoch_1.pth --also vit.py random --out a.html"
    assert data["run"]["command"] == f"{command} --num-images 30 --shown 4 --title Two <families>"
    for folder in (tmp_path, configs, debug_checkpoint.parent):
        assert str(folder) not in (tmp_path / "a.html").read_text()
    assert data["title"] == "Two <families>"
    assert "<title>Two &lt;families&gt;</title>" in (tmp_path / "a.html").read_text()

    # The same again is the same page, but for its own name and day.
    done = run_main("report", *args[:-1], tmp_path / "b.html", *("--num-images", "30", "--shown", "4"))
    again = data_of(tmp_path / "b.html")
    assert {**again, "run": 0, "title": 0} == {**data, "run": 0, "title": 0}


def test_images_of_a_folder(run_main, debug_checkpoint, tmp_path):
    names = ["<script>alert(1)<.png", 'a" onload="x.png', "plain.png"]
    (tmp_path / "photos").mkdir()
    for i, name in enumerate(names):
        pixels = np.random.RandomState(i).randint(0, 256, (12, 20, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / name)
    out = tmp_path / "page.html"
    run_main("report", "debug", debug_checkpoint, "--images", tmp_path / "photos", "--out", out)
    data = data_of(out)
    assert sorted(image["name"] for image in data["images"]) == sorted(names)
    assert {image["label"] for image in data["images"]} == {None}
    (model,) = data["models"]
    assert (model["images"], model["labelled"], model["classes"]) == (3, 0, [])
    assert model["undefined"] == {"labels": "The data has no labels (images of photos)."}
    assert model["layers"][0]["code"]["by_class"] is None
    assert "<script>alert" not in out.read_text()
    run_main("report", "segmentation_mini_scenes", "random", "--images", tmp_path / "photos", "--out", out)
    (model,) = data_of(out)["models"]
    assert [image["truth"] for image in model["segmented"]["images"]] == [None] * 3


def test_a_mask_of_too_many_classes_is_refused_before_the_work(tmp_path):
    for folder, pixels in (("images", np.zeros((64, 64, 3), np.uint8)), ("masks", np.arange(4096, dtype=np.uint16))):
        (tmp_path / folder).mkdir()
        Image.fromarray(pixels.reshape(64, 64, *pixels.shape[2:])).save(tmp_path / folder / "a.png")
    data = ClassificationDataset({"type": "ImageFiles", "root": str(tmp_path / "images")}, [])
    with pytest.raises(ValueError, match=r"a\.png has 4,095 classes: expected at most 1,024"):
        true_masks(data, str(tmp_path / "masks"))(0)


def test_true_masks_of_the_images(run_main, debug_checkpoint, tmp_path):
    """The best head by hand: its mask of 4 x 4 patches, each 2 x 2 pixels of the 8 x 8 that the model sees."""
    for folder in ("photos", "masks"):
        (tmp_path / folder).mkdir()
    for name in ("known", "unknown"):
        pixels = np.random.RandomState(len(name)).randint(0, 256, (16, 16, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{name}.png")
    truth = np.zeros((16, 16), np.uint8)
    truth[:, :8], truth[12:, 8:], truth[:2, 8:] = 7, 9, 255
    Image.fromarray(truth, "L").save(tmp_path / "masks" / "known.png")
    out, args = tmp_path / "page.html", ("--images", tmp_path / "photos", "--masks")
    resize = "test_dataloader.dataset.transforms=[{'type': 'Resize', 'size': [8, 8]}]"
    stored = ("--weights-megabytes", "0")  # else the page computes the masks
    args = ("debug", debug_checkpoint, *args, tmp_path / "masks", "--out", out, *stored, "--cfg-options", resize)
    done = run_main("report", *args)
    (model,), (data,) = data_of(out)["models"], data_of(out)["datas"]
    assert [t is None for t in data["truths"]] == [False, True]
    seen = np.zeros((8, 8), int)
    seen[:, :4], seen[6:, 4:], seen[0, 4:] = 7, 9, 255
    for layer in model["layers"]:
        masks = np.kron(unpack(layer["looks"]["masks"])[0].reshape(3, 4, 4), np.ones((1, 2, 2))).astype(bool)
        best, nothing = layer["looks"]["best"]
        assert nothing is None
        assert [one["label"] for one in best] == [7, 9]
        for one in best:
            region, counted = seen == one["label"], seen != 255
            overlaps = [(m & region).sum() / ((m & counted) | region).sum() for m in masks]
            assert (one["head"], one["iou"]) == (np.argmax(overlaps), pytest.approx(max(overlaps)))

    Image.fromarray(truth[:8], "L").save(tmp_path / "masks" / "known.png")
    done = run_main("report", *args, code=2)
    assert done.last_line == f"error: mask {tmp_path}/masks/known.png has shape (8, 16), its image (16, 16)"


def test_files_of_one_name_are_told_apart_by_their_runs(run_main, debug_checkpoint, tmp_path):
    files = [tmp_path / run / "epoch_2.pth" for run in ("run_a", "run_b")]
    for file in files:
        file.parent.mkdir()
        shutil.copy(debug_checkpoint, file)
    run_main("report", "debug", *files, "random", "--num-images", 20, "--out", tmp_path / "page.html")
    labels = [model["label"] for model in data_of(tmp_path / "page.html")["models"]]
    assert labels == ["run_a/epoch_2", "run_b/epoch_2", "random"]


MISTAKES = {
    "other data": (
        ["debug", "random", "--also", "{configs}/other.py", "random"],
        "{configs}/other.py has 1347 images, and the first config 450: models must be compared on the same images",
    ),
    "other size": (
        ["debug", "random", "--also", "{configs}/large.py", "random"],
        "the images of {configs}/large.py have shape (1, 8, 8), the model takes (1, 16, 16): change the config's "
        "transforms",
    ),
    "too large": (
        ["{configs}/enlarged.py", "random", "--megabytes", "1", "--shown", "450"],
        "more than --megabytes 1: use fewer samples (--shown) or fewer checkpoints",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_a_sentence(run_main, configs, tmp_path, mistake):
    args, sentence = MISTAKES[mistake]
    done = run_main("report", *(arg.format(configs=configs) for arg in args), "--out", tmp_path / "page.html", code=2)
    assert sentence.format(configs=configs) in done.last_line
    assert not (tmp_path / "page.html").exists()
