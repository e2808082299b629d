"""A family, a task and a kind of sample, each added from outside the package in one small file.

A figure and a measure are examples of CONTRIBUTING.md, which test_readmes.py runs.
"""

import json
import textwrap

import numpy as np
import pytest

FILES = {
    # A family: two operators of one's own in the package's block, and a backbone of them.
    "my_family": """
        import torch
        from torch import nn
        from crate_mm.models.layers import Compression, Sparsification, Subspaces
        from crate_mm.registry import LAYERS

        @LAYERS.register_module()
        class Averaging(Compression):  # no subspaces, no attention: a mean over the tokens
            def __init__(self, embed_dim, num_heads):
                super().__init__()
                self.value = nn.Linear(embed_dim, embed_dim)

            def forward(self, x):
                return self.tap_w(self.value(x)).mean(1, keepdim=True)

        @LAYERS.register_module()
        class InnerCode(Sparsification):  # the code is inside, the output is dense
            returns_code = False
            lambd = 0.1

            def __init__(self, embed_dim, width=3):
                super().__init__()
                self.up, self.down = nn.Linear(embed_dim, width * embed_dim), nn.Linear(width * embed_dim, embed_dim)

            def forward(self, x):
                return self.down(self.tap_code(torch.relu(self.up(x) - self.lambd)))
        """,
    # A task without labels, whose samples are of a kind of its own: rows of numbers, not images.
    "my_task": """
        import torch
        from mmengine.evaluator import BaseMetric
        from torch import nn
        from torch.utils.data import Dataset
        from mmengine.model import BaseDataPreprocessor
        from crate_mm.models import Task
        from crate_mm.registry import DATASETS, METRICS, MODELS

        @DATASETS.register_module()
        class Waves(Dataset):
            def __init__(self, length=64, root=None):
                phases = torch.linspace(0, 6, length)[:, None]
                self.rows = torch.sin(phases + torch.linspace(0, 6, 16))

            def __len__(self):
                return len(self.rows)

            def __getitem__(self, index):
                position = index[0] if isinstance(index, tuple) else index  # (position, seed) in training
                return {"wave": self.rows[position], "sample_idx": position}

        @MODELS.register_module()
        class MaskedWaves(Task):
            headline = ("eval/error", "less")

            def __init__(self, width=8, masked=4):
                super().__init__(BaseDataPreprocessor())
                self.backbone = nn.Sequential(nn.Linear(16, width), nn.ReLU())
                self.decoder, self.masked = nn.Linear(width, 16), masked

            def tensor(self, wave, **_):
                seen = wave.clone()
                seen[:, : self.masked] = 0
                return self.decoder(self.backbone(seen))

            def loss(self, wave, **_):
                return {"loss": (self.tensor(wave) - wave)[:, : self.masked].square().mean()}

            def predict(self, wave, **_):
                return list((self.tensor(wave) - wave)[:, : self.masked].square().mean(1))

            def features(self, wave, **_):
                return self.backbone(wave)

            def example(self, size=None):
                return {"wave": torch.zeros(1, 16)}

            def check_data(self, dataset, split):
                if "wave" not in dataset[0]:
                    raise ValueError(f"the {split} data has no waves")

        @METRICS.register_module()
        class WaveError(BaseMetric):
            default_prefix = "eval"

            def process(self, data_batch, data_samples):
                self.results += [float(error) for error in data_samples]

            def compute_metrics(self, results):
                return {"error": sum(results) / len(results)}
        """,
}
WAVES = """
_base_ = ["{debug}"]
custom_imports = dict(imports=["my_task"])
model = dict(_delete_=True, type="MaskedWaves")
loader = dict(_delete_=True, batch_size=16, num_workers=0, sampler=dict(type="DefaultSampler", shuffle=False),
              dataset=dict(type="Waves", length=32))
train_dataloader = dict(_delete_=True, num_workers=0, dataset=dict(type="Waves"))
val_dataloader, test_dataloader = loader, loader
val_evaluator = dict(_delete_=True, type="WaveError")
test_evaluator = val_evaluator
global_batch_size = 16
"""


@pytest.fixture
def outside(tmp_path):
    """A folder with the files and a function that writes a config which imports some of them."""
    from crate_mm.config import find_config

    for name, text in FILES.items():
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))

    def config(name, text):
        path = tmp_path / f"{name}.py"
        path.write_text(text.replace("{debug}", str(find_config("debug"))))
        return path

    return config


@pytest.mark.slow
def test_a_family_trains_and_is_looked_into(outside, run_tool, tmp_path):
    config = outside(
        "mine",
        "_base_ = ['{debug}']\ncustom_imports = dict(imports=['my_family'])\nmodel = dict(backbone=dict("
        "compress=dict(type='Averaging'), sparsify=dict(type='InnerCode', width=2), residual=True))\n",
    )
    done = run_tool("train", config, "--work-dir", tmp_path / "w", "--cfg-options", "train_cfg.max_epochs=1")
    assert done.code == 0, done.output
    checkpoint = tmp_path / "w" / "epoch_1.pth"
    done = run_tool("analyze", "layers", config, checkpoint, "--out", tmp_path / "a", "--num-images", 20)
    assert done.code == 0, done.output
    assert "has no subspaces: R^c is not defined" in done.output
    rows = [line.split(",") for line in (tmp_path / "a" / "layers.csv").read_text().splitlines()[1:]]
    assert {row[1] for row in rows} == {"sparsity", "r_out"}, "what the steps have not is not measured"
    sparsity = [float(row[4]) for row in rows if row[1] == "sparsity"]
    assert all(0 < value < 1 for value in sparsity), "of the inner code, not of the dense output, which is 1"
    image = tmp_path / "x.png"
    from PIL import Image

    Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 9), dtype=np.uint8)).save(image)
    for command, sentence in (
        (["attention", config, checkpoint, "--images", image], "its Averaging computes no attention matrix"),
        (["subspaces", config, checkpoint], "has no subspaces, so R^c is not defined"),
    ):
        done = run_tool("analyze", *command, "--out", tmp_path / "a")
        assert (done.code, sentence in done.last_line) == (2, True), done.output


@pytest.mark.slow
def test_a_task_with_samples_of_its_own_kind(outside, run_tool, tmp_path):
    """Trained, resumed, tested, counted, published and tested again, with nothing in the package changed."""
    config, work = outside("waves", WAVES), tmp_path / "w"
    done = run_tool("train", config, "--work-dir", work, "--cfg-options", "train_cfg.max_epochs=2")
    assert done.code == 0, done.output
    done = run_tool("train", config, "--work-dir", work, "--resume", "--cfg-options", "train_cfg.max_epochs=4")
    assert done.code == 0, done.output
    assert "resumed epoch: 2, iter: 8" in done.output
    result = json.loads((work / "result.json").read_text())
    assert result["headline"] == {"metric": "error", "rule": "less"}
    assert result["best"]["error"] <= result["last"]["error"]
    assert (result["model"], result["dataset"]) == ("maskedwaves", "Waves")
    assert result["flops"] == 16 * 8 * 2
    (best,) = work.glob("best_eval_error_epoch_*.pth")
    done = run_tool("publish", best, tmp_path / "waves.safetensors")
    assert done.code == 0, done.output
    for checkpoint in (best, tmp_path / "waves.safetensors"):
        done = run_tool("test", config, checkpoint, "--work-dir", tmp_path / "t", "--json", tmp_path / "t.json")
        assert done.code == 0, done.output
        assert json.loads((tmp_path / "t.json").read_text())["error"] == pytest.approx(result["best"]["error"])
    done = run_tool("results_table", work)
    assert "| error | maskedwaves- |" in done.output


def test_a_model_that_is_no_task_is_refused(outside, run_tool, tmp_path):
    (tmp_path / "no_task.py").write_text(
        "from mmengine.model import BaseModel\nfrom crate_mm.registry import MODELS\n@MODELS.register_module()\n"
        "class Plain(BaseModel):\n    def forward(self, *a, **k): ...\n"
    )
    config = outside(
        "plain",
        "_base_ = ['{debug}']\ncustom_imports = dict(imports=['no_task'])\nmodel = dict(_delete_=True, type='Plain')\n",
    )
    done = run_tool("train", config, "--work-dir", tmp_path / "w")
    assert (done.code, "model Plain is no task: let it inherit from crate_mm.models.Task" in done.last_line) == (
        2,
        True,
    )
