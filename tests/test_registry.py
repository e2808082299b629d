"""The registries: what they know, what they say of what they do not, and parts from a user's own file."""

import inspect

import pytest
import torch
from mmengine.registry import Registry

from crate_mm import registry
from crate_mm.engine import Runner, load_config
from crate_mm.registry import BACKBONES, DATASETS, HEADS, METRICS, OPTIMIZERS, suggest

REGISTRIES = {name: value for name, value in vars(registry).items() if isinstance(value, Registry)}


@pytest.mark.parametrize("name", REGISTRIES)
def test_an_unknown_name_is_refused(name):
    with pytest.raises(ValueError, match=r"unknown .* 'NoSuchThing': "):
        REGISTRIES[name].get("NoSuchThing")


@pytest.mark.parametrize(
    ("known", "name", "message"),
    [
        (BACKBONES, "CRAT", "unknown backbone 'CRAT': did you mean CRATE"),
        (HEADS, "linearhead", "unknown head 'linearhead': did you mean LinearHead"),
        (OPTIMIZERS, "Lino", "unknown optimizer 'Lino': did you mean .*Lion"),
        (DATASETS, "ImagNet", "did you mean ImageNet"),
        (METRICS, "Accuracy", "unknown metric 'Accuracy': "),
    ],
)
def test_the_closest_names_are_given(known, name, message):
    with pytest.raises(ValueError, match=message):
        known.build(dict(type=name))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("crate_gpt", "none of the 14 known names is close"),  # not the names that also begin with crate
        ("crate_tinny", "did you mean crate_tiny, crate_mae_tiny, vit_tiny?"),
        ("CRATE-Tiny", "did you mean crate_tiny, crate_mae_tiny?"),
        ("crate_digits", "did you mean crate_mini_digits?"),
        ("crate_tiny_in1k", "did you mean crate_tiny?"),
        ("vit", "did you mean vit_tiny, vit_small?"),
        ("_", "none of the 14 known names is close"),
    ],
)
def test_words_that_many_names_share_are_no_hint(name, message):
    known = ["crate_tiny", "crate_mae_tiny", "crate_large", "crate_mini_digits", "vit_tiny", "vit_small"]
    assert suggest(name, [*known, *(f"crate_x{number}" for number in range(8))]) == message


TORCH_OPTIMIZERS = sorted(
    name
    for name, cls in vars(torch.optim).items()
    if inspect.isclass(cls) and issubclass(cls, torch.optim.Optimizer) and cls is not torch.optim.Optimizer
)


@pytest.mark.parametrize("name", [*TORCH_OPTIMIZERS, "Lion"])
def test_every_optimizer_builds_from_a_config(name):
    weight = torch.nn.Parameter(torch.zeros(3, 4))
    # MMEngine keeps the name Adafactor for that of the transformers package.
    registered = "TorchAdafactor" if name == "Adafactor" else name
    optimizer = OPTIMIZERS.build(dict(type=registered, params=[weight], lr=0.1))
    assert type(optimizer).__name__ == name
    assert optimizer.param_groups[0]["lr"] == 0.1


OWN_PARTS = """
import torch
from PIL import Image
from torch import nn
from crate_mm.models import Backbone
from crate_mm.registry import BACKBONES, DATASETS, HEADS, HOOKS, OPTIMIZERS

@BACKBONES.register_module()
class OwnBackbone(Backbone):
    def __init__(self, width):
        super().__init__()
        self.embed_dim = width
        self.conv = nn.Conv2d(1, width, 4, 4)

    def forward(self, images):
        return self.conv(images).flatten(2).mT

@HEADS.register_module()
class OwnHead(nn.Module):
    def __init__(self, in_dim, num_classes):
        super().__init__()
        self.num_classes = num_classes
        self.fc = nn.Linear(in_dim, num_classes)

    def forward(self, tokens):
        return self.fc(tokens.amax(1))

@OPTIMIZERS.register_module()
class OwnOptimizer(torch.optim.SGD):
    steps = 0

    def step(self, closure=None):
        OwnOptimizer.steps += 1
        return super().step(closure)

@DATASETS.register_module()
class OwnData:
    classes = ["dark", "bright"]

    def __init__(self, size, root=None):
        self.size, self.root = size, root

    def __len__(self):
        return self.size

    def __getitem__(self, i):
        return Image.new("L", (8, 8), 200 * (i % 2) + 20), i % 2
"""

OWN_CONFIG = """
_base_ = [r"{configs}/_base_/default_runtime.py"]
custom_imports = dict(imports=["own_parts"])
data_root = "somewhere"
model = dict(
    type="ImageClassifier",
    backbone=dict(type="OwnBackbone", width=6),
    head=dict(type="OwnHead", num_classes=2),
    preprocessor=dict(mean=(0.5,), std=(0.5,)),
)
global_batch_size = 8
train_dataloader = dict(dataset=dict(type="ClassificationDataset", source=dict(type="OwnData", size=32)))
val_dataloader = dict(
    batch_size=8,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="ClassificationDataset", source=dict(type="OwnData", size=16)),
)
test_dataloader = val_dataloader
val_evaluator = test_evaluator = dict(type="ClassificationMetric")
optim_wrapper = dict(optimizer=dict(type="OwnOptimizer", lr=0.3))
param_scheduler = dict(type="WarmupCosineLR", warmup=1, convert_to_iter_based=True)
train_cfg = dict(max_epochs=8)
val_cfg = test_cfg = dict()
"""


def test_own_parts_from_an_own_file(tmp_path):
    from crate_mm.engine import CONFIGS

    (tmp_path / "own_parts.py").write_text(OWN_PARTS)
    (tmp_path / "own.py").write_text(OWN_CONFIG.format(configs=CONFIGS))
    cfg = load_config(tmp_path / "own.py")
    cfg.work_dir = str(tmp_path / "run")
    runner = Runner.from_cfg(cfg)
    runner.train()
    import own_parts

    assert type(runner.model.backbone) is own_parts.OwnBackbone
    assert own_parts.OwnOptimizer.steps == 8 * 4
    assert runner.train_dataloader.dataset.source.root == "somewhere"
    assert runner.message_hub.get_info("best_score") == 100
