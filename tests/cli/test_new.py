"""``new``: each file that it writes trains as it stands, and passes the checks for parts of one's own."""

import pytest
import torch

from crate_mm.cli.new import REGISTRIES, new_files
from crate_mm.config import load_config
from crate_mm.engine import Runner
from crate_mm.registry import BACKBONES, MODELS
from crate_mm.testing import check_backbone, check_layer, check_task

ONE_STEP = {"global_batch_size": 600, "train_cfg.max_epochs": None, "train_cfg.max_steps": 1, "visualizer": None}


def write(kind, folder):
    files = new_files(kind, f"own_{kind}", folder / f"own_{kind}.py")
    for path, text in files.items():
        path.write_text(text)
    return list(files)[-1]


@pytest.mark.parametrize("kind", ["recipe", *REGISTRIES])
@pytest.mark.slow
def test_a_new_file_trains_as_it_stands(kind, tmp_path):
    cfg = load_config(write(kind, tmp_path), ONE_STEP)
    cfg.work_dir = str(tmp_path / "run")
    runner = Runner.for_training(cfg)
    runner.train()
    assert runner.iter == 1
    batch = next(iter(runner.train_dataloader))
    parts = {"layer": "OwnLayer", "family": "OwnFamily", "task": "OwnTask"}
    if kind in parts:
        assert parts[kind] in REGISTRIES[kind].names()
    if kind == "layer":
        check_layer(BACKBONES.build(cfg.model.backbone).layers[0], embed_dim=48)
    check_backbone(BACKBONES.build(cfg.model.backbone))
    check_task(MODELS.build(cfg.model), {key: v[:8] for key, v in batch.items() if isinstance(v, torch.Tensor)})


@pytest.mark.parametrize(
    ("kind", "name", "out", "message"),
    [
        ("layer", "my layer", "my layer.py", "expected a Python name such as my_layer"),
        ("layer", "class", "class.py", "expected a Python name"),
        ("task", "mine", "mine.txt", "expected a Python name"),
        ("family", "ViT", "mine.py", "ViT is registered already"),
        ("layer", "colorsys", "colorsys.py", "there is a module colorsys already"),
        ("recipe", "taken", "taken.py", "taken.py exists: choose another name or --out"),
        ("task", "half", "half.py", "half_config.py exists"),
    ],
)
def test_a_name_that_is_wrong_or_taken_is_an_error(kind, name, out, message, tmp_path):
    for taken in ("taken.py", "half_config.py"):
        (tmp_path / taken).write_text("")
    with pytest.raises(ValueError, match=message):
        new_files(kind, name, tmp_path / out)


def test_the_command_prints_the_next_one(tmp_path, run_main):
    done = run_main("new", "layer", "other_layer", cwd=tmp_path)
    assert done.last_line == "next: crate-mm train other_layer_config.py"
    assert "class OtherLayer(" in (tmp_path / "other_layer.py").read_text()
    done = run_main("new", "layer", "other_layer", cwd=tmp_path, code=2)
    assert done.last_line == ("error: other_layer.py exists: choose another name or --out")
