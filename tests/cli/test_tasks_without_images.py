"""Tools that look at images, on a task and data of a user's own that are none: a sentence, and no traceback."""

import pytest
import torch
from PIL import Image

PARTS = """
import torch
from torch import nn
from crate_mm.models import Task
from crate_mm.registry import DATASETS, MODELS

@MODELS.register_module()
class Vectors(Task):
    headline = ("loss", "less")
    uses_labels = False
    num_classes = 4

    def __init__(self):
        super().__init__()
        self.backbone = nn.Linear(4, 4)

    def loss(self, inputs, **batch):
        return {"loss": self.backbone(inputs).square().mean()}

    def predict(self, inputs, **batch):
        return list(self.backbone(inputs))

    def tensor(self, inputs, **batch):
        return self.backbone(inputs)

    def example(self, size=None):
        return {"inputs": torch.zeros(1, 4)}

@DATASETS.register_module()
class VectorData(torch.utils.data.Dataset):
    def __len__(self):
        return 32

    def __getitem__(self, index):
        return {"inputs": torch.zeros(4)}
"""
CONFIG = """
custom_imports = dict(imports=["parts_of_vectors"])
model = dict(type="Vectors")
train_dataloader = dict(dataset=dict(type="VectorData"))
val_dataloader = dict(dataset=dict(type="VectorData"))
train_cfg = dict(max_epochs=1)
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=1e-3))
randomness = dict(seed=0)
global_batch_size = 8
"""
NO_IMAGES = "Vectors is no task of images: expected inputs of shape (B, C, H, W)"


@pytest.mark.slow
def test_each_tool_says_that_there_are_no_images(run_main, tmp_path, monkeypatch):
    (tmp_path / "parts_of_vectors.py").write_text(PARTS)
    (tmp_path / "vectors.py").write_text(CONFIG)
    linear = torch.nn.Linear(4, 4).state_dict()
    torch.save({"state_dict": {f"backbone.{name}": value for name, value in linear.items()}}, tmp_path / "v.pth")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    monkeypatch.syspath_prepend(str(tmp_path))
    for tool, args, said in (
        ("bench", ("--seconds", 1), NO_IMAGES),
        ("export", ("v.pth", "--to", "torch-export"), NO_IMAGES),
        ("analyze", ("v.pth", "--images", "a.png"), NO_IMAGES),
        ("browse", (), "sample -1 is not an image: expected uint8 of shape (C, H, W), got float32 of (4,)"),
    ):
        figure = ("attention",) if tool == "analyze" else ()
        done = run_main(tool, *figure, "vectors.py", *args, cwd=tmp_path, code=2)
        assert (said in done.last_line, "Traceback" in done.output) == (True, False), done.output
    done = run_main("doctor", "vectors.py", cwd=tmp_path, code=None)
    assert "VectorData returns dict, not pairs (image, label): its samples are not checked" in done.output
    assert "Traceback" not in done.output
