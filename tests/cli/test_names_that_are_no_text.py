"""Folders and files whose names are no UTF-8, as older systems wrote them, from training to what is handed on."""

import csv
import json
import os
from pathlib import Path

import pytest
import torch
from mmengine.visualization import LocalVisBackend
from PIL import Image

from crate_mm import Predictor, init_model
from crate_mm.checkpoints import CheckpointError, newest_checkpoint, open_checkpoint, verify_checkpoint
from crate_mm.checkpoints.publish import publish
from crate_mm.datasets.folders import ImageFolder
from crate_mm.datasets.names import utf8_name
from crate_mm.engine.logs import Visualizer
from tests.conftest import make_image_tree

pytestmark = pytest.mark.skipif(os.name != "posix", reason="names are text there")

# Latin-1, GBK, a byte that begins no character, and one that is cut off.
NAMES = [os.fsdecode(name) for name in (b"caf\xe9", "中文".encode("gbk"), b"\xff", b"chat\xe7\x8c")]
SMALL = """
_base_ = ["{configs}/debug.py"]
data_root = {root!r}
sized = [dict(type="Resize", size=(8, 8)), dict(type="Grayscale")]
train_dataloader = dict(dataset=dict(source=dict(_delete_=True, type="ClassFolders", split="train"), transforms=sized))
val_dataloader = dict(dataset=dict(source=dict(_delete_=True, type="ClassFolders", split="val"), transforms=sized))
test_dataloader = val_dataloader
model = dict(head=dict(num_classes=2))
global_batch_size = 4
train_cfg = dict(max_epochs=1)
"""


def rows_of(file: Path) -> list[dict]:
    with open(file, newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_is_read_under_any_name(debug_checkpoint, in_copy, tmp_path, name):
    told = open_checkpoint(debug_checkpoint)
    copy = in_copy(debug_checkpoint, f"{name}.pth")
    assert verify_checkpoint(copy) is None
    opened = open_checkpoint(copy)
    assert all(torch.equal(value, told.weights[key]) for key, value in opened.weights.items())
    published = tmp_path / f"{name}.safetensors"
    publish(opened, published)
    assert init_model(None, published).class_names == told.class_names
    whole = copy.read_bytes()
    copy.write_bytes(whole[: len(whole) // 2] + b"?" + whole[len(whole) // 2 + 1 :])
    with pytest.raises(CheckpointError, match="is damaged"):
        verify_checkpoint(copy)


@pytest.mark.parametrize("name", NAMES)
def test_the_newest_checkpoint_of_such_a_folder_is_found(debug_checkpoint, tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    for epoch in (1, 2):
        (folder / f"epoch_{epoch}.pth").write_bytes(debug_checkpoint.read_bytes())
    assert newest_checkpoint(folder, rename_damaged=True) == folder / "epoch_2.pth"
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("name", [*NAMES, "猫"])
def test_tensorboard_alone_is_left_out_where_it_cannot_write(tmp_path, name):
    backends = [{"type": "LocalVisBackend"}, {"type": "TensorboardVisBackend"}]
    made = Visualizer(f"of {tmp_path}", vis_backends=backends, save_dir=str(tmp_path / name))
    made.add_scalars({"loss": 1.0})
    made.close()
    kinds = [type(backend).__name__ for backend in made._vis_backends.values()]
    assert kinds == ["LocalVisBackend", "TensorboardVisBackend"][: 1 + (name == "猫")]
    assert isinstance(made.get_backend("LocalVisBackend"), LocalVisBackend)


@pytest.mark.slow
def test_nothing_is_lost_for_a_name(tmp_path, run_tool):
    """Of a class, an image, the data, the config, the work directory, the checkpoint and all that is written of it."""
    name = NAMES[0]
    data = make_image_tree(tmp_path / f"data {name}", classes=2)
    for split in ("train", "val"):
        (data / split / "n00000001").rename(data / split / name)
    odd = next((data / "val" / name).iterdir()).rename(data / "val" / name / f"{name}.JPEG")
    config = tmp_path / f"{name}.py"
    config.write_text(SMALL.format(configs=Path(__file__).resolve().parents[2] / "configs", root=str(data)))
    work = tmp_path / f"work {name}"
    ran = run_tool("train", config, "--work-dir", work)
    assert ran.code == 0, ran.output
    ran = run_tool("train", config, "--work-dir", work, "--resume", "--cfg-options", "train_cfg.max_epochs=2")
    assert ran.code == 0, ran.output
    assert json.loads((work / "result.json").read_text())["epochs"] == 2
    out = {kind: tmp_path / f"{kind} {name}" for kind in ("out", "per-class", "confusion", "json")}
    options = [option for kind, file in out.items() for option in (f"--{kind}", file)]
    ran = run_tool("test", work / config.name, work / "epoch_2.pth", *options)
    assert ran.code == 0, ran.output
    escaped = name.encode("utf-8", "backslashreplace").decode()
    rows = rows_of(out["out"])
    assert {row["label"] for row in rows} == {"n00000000", escaped}
    assert f"{escaped}.JPEG" in {Path(row["image"]).name for row in rows}
    assert {row["name"] for row in rows_of(out["per-class"])} == {"n00000000", escaped}
    published = tmp_path / f"{name}.safetensors"
    ran = run_tool("publish", work / "epoch_2.pth", published)
    assert ran.code == 0, ran.output
    classes = {found for found, _ in Predictor(init_model(None, published))([odd])[0]}
    assert classes == {"n00000000", name}
    ran = run_tool("train", config, "--work-dir", tmp_path / "from", "--load-from", work / "epoch_2.pth")
    assert ran.code == 0, ran.output


@pytest.mark.parametrize(
    ("name", "text"), [("\udce7\udc8c\udcab", "猫"), ("猫", "猫"), ("plain", "plain"), ("caf\udce9", "caf\udce9")]
)
def test_a_class_is_called_the_same_in_every_locale(tmp_path, name, text):
    """Without a locale Python gives a folder's bytes as surrogates, which are UTF-8 nevertheless."""
    assert utf8_name(name) == text
    (tmp_path / name).mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / name / "a.png")
    data = ImageFolder(tmp_path)
    assert data.classes == [text]
    assert data[0][1] == 0
