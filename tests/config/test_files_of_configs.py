"""What a config's file may hold: text in UTF-8, and settings that are data when they are read again."""

from pathlib import Path

import pytest
from mmengine.config import Config

from crate_mm.config import dump, load_config


@pytest.mark.parametrize("which", ["the config", "its base"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("\ufeffx = 1\n".encode(), "begins with a byte order mark"),
        ("x = 1\ny = 'café'\n".encode("latin-1"), "line 2 is not UTF-8"),
        ("# -*- coding: latin-1 -*-\ny = 'café'\n".encode("latin-1"), "line 2 is not UTF-8"),
        ("y = '中文'\n".encode("gbk"), "line 1 is not UTF-8"),
        ("x = 1\n".encode("utf-16"), "line 1 is not UTF-8"),
    ],
)
def test_a_file_that_is_no_utf_8_is_named(tmp_path, content, message, which):
    file = tmp_path / "odd.py"
    file.write_bytes(content)
    (tmp_path / "leaf.py").write_text("_base_ = ['odd.py']\n")
    with pytest.raises(ValueError, match=rf"odd\.py,? {message}"):
        load_config(file if which == "the config" else tmp_path / "leaf.py")


def test_windows_line_ends_and_any_script_are_read(tmp_path):
    file = tmp_path / "c.py"
    file.write_bytes("_base_ = ['configs/debug.py']\r\ndata_root = '猫'\r\n".replace("configs", _configs()).encode())
    assert load_config(file).data_root == "猫"


def _configs() -> str:
    return str(Path(__file__).resolve().parents[2] / "configs").replace("\\", "/")


USED = """
import math
import os
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np


class Own:
    pass


def twice(x):
    return 2 * x


half = lambda x: x / 2
_base_ = ["{configs}/debug.py"]
data_root = Path("/data") / "images"
work_dir = PurePosixPath("runs")
optim_wrapper = dict(optimizer=dict(lr=np.float64(0.25), betas=(np.float32(0.5), 0.75)))
train_cfg = dict(max_epochs=twice(np.int64(2)))
custom_hooks = [dict(type="EMAHook", momentum=half(0.5))]
"""


def test_what_a_file_uses_to_make_settings_is_no_setting(tmp_path):
    """Modules, functions and classes are left out, paths and NumPy's numbers become plain, and all survives."""
    file = tmp_path / "c.py"
    file.write_text(USED.replace("{configs}", _configs()))
    cfg = load_config(file)
    assert not {"math", "os", "Path", "PurePosixPath", "partial", "np", "Own", "twice", "half"} & set(cfg)
    dump(cfg, tmp_path / "again.py")
    for read in (cfg, load_config(tmp_path / "again.py")):
        assert read.data_root == "/data/images"
        assert read.work_dir == "runs"
        optimizer = read.optim_wrapper.optimizer
        assert type(optimizer.lr) is float
        assert [optimizer.lr, *optimizer.betas] == [0.25, 0.5, 0.75]
        assert type(read.train_cfg.max_epochs) is int
        assert read.train_cfg.max_epochs == 4
        assert read.custom_hooks[0].momentum == 0.25


@pytest.mark.parametrize(
    ("line", "where"),
    [
        ("model = dict(type=Own)", "model.type"),
        ("train_dataloader = dict(collate_fn=lambda x: x)", "train_dataloader.collate_fn"),
        ("custom_hooks = [dict(type='EMAHook', momentum=np.zeros(2))]", "custom_hooks.0.momentum"),
        ("optim_wrapper = dict(dtype=torch.float16)", "optim_wrapper.dtype"),
    ],
)
def test_a_setting_that_is_no_data_is_refused_by_name(tmp_path, line, where):
    file = tmp_path / "c.py"
    file.write_text(f"import numpy as np\nimport torch\nclass Own:\n    pass\n{line}\n")
    with pytest.raises(ValueError, match=rf"c\.py: {where} is .*, not plain data") as told:
        load_config(file)
    assert "\n" not in str(told.value)


def test_a_config_that_cannot_be_written_leaves_the_earlier_one(tmp_path):
    file = tmp_path / "c.py"
    file.write_text("x = 1\n")
    with pytest.raises(Exception, match="format"):
        dump(Config({"x": object()}), file)
    assert file.read_text() == "x = 1\n"
    assert [path.name for path in tmp_path.iterdir()] == ["c.py"]


def test_paths_that_python_code_sets_are_written(tmp_path):
    cfg = load_config("debug")
    cfg.work_dir, cfg.load_from = tmp_path / "run", None
    dump(cfg, tmp_path / "c.py")
    assert load_config(tmp_path / "c.py").work_dir == str(tmp_path / "run")
