"""Every config of the folder: it builds, and says what it is."""

import ast

import pytest
import torch
from mmengine.config import Config

from crate_mm.engine import CONFIGS, load_config, prepare
from crate_mm.registry import DATASETS, LOOPS, METRICS, MODELS, OPTIMIZERS, PARAM_SCHEDULERS

LEAVES = sorted(p for p in CONFIGS.rglob("*.py") if "_base_" not in p.parts)
LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")


@pytest.mark.parametrize("path", LEAVES, ids=lambda p: str(p.relative_to(CONFIGS)))
def test_every_config_builds(path, tmp_path):
    cfg = prepare(load_config(path), world_size=1)
    with torch.device("meta"):
        model = MODELS.build(cfg.model)
        H, W = model.backbone.img_size
        logits = model(torch.zeros(2, model.backbone.in_channels, H, W))
    assert logits.shape == (2, cfg.model.head.num_classes)
    for name in LOADERS:
        assert "data_root" in cfg
        assert DATASETS.get(cfg[name].dataset.type)
        assert DATASETS.get(cfg[name].dataset.source.type)
    OPTIMIZERS.build({**cfg.optim_wrapper.optimizer, "params": [torch.nn.Parameter(torch.zeros(1))]})
    PARAM_SCHEDULERS.get(cfg.param_scheduler.type)
    LOOPS.get(cfg.train_cfg.type)
    METRICS.build(cfg.val_evaluator)
    cfg.dump(tmp_path / "dumped.py")
    assert Config.fromfile(tmp_path / "dumped.py").model == cfg.model


@pytest.mark.parametrize("path", LEAVES, ids=lambda p: str(p.relative_to(CONFIGS)))
def test_every_config_is_its_own_model_card(path):
    tree = ast.parse(path.read_text())
    text = ast.get_docstring(tree)
    assert path.name in text, "the docstring gives the command"
    assert all(isinstance(node, (ast.Expr, ast.Assign)) for node in tree.body)


@pytest.mark.parametrize("size", ["tiny", "small", "base", "large"])
def test_in1k_is_the_papers_recipe(size):
    cfg = load_config(f"crate_{size}_in1k")
    assert cfg.model.backbone == dict(
        type="CRATE", arch=size, img_size=224, patch_size=16, ista_step_size=0.1, ista_lambda=0.1
    )
    assert (cfg.model.head.num_classes, cfg.model.head.pool, cfg.model.label_smoothing) == (1000, "cls", 0.1)
    assert cfg.optim_wrapper == dict(optimizer=dict(type="Lion", lr=2.4e-4, weight_decay=0.5))
    assert (cfg.global_batch_size, cfg.train_cfg.max_epochs, cfg.param_scheduler.warmup) == (2048, 150, 5)
    assert cfg.train_dataloader.dataset.transforms == [
        dict(type="RandomResizedCrop", size=224),
        dict(type="RandomHorizontalFlip"),
    ]
    for loader in (cfg.val_dataloader, cfg.test_dataloader):
        assert loader.dataset.transforms == [dict(type="Resize", size=256), dict(type="CenterCrop", size=224)]
        assert loader.dataset.source.split == "val"
    assert cfg.model.preprocessor.mean == (0.485, 0.456, 0.406)
    assert cfg.model.preprocessor.std == (0.229, 0.224, 0.225)


def test_weight_decay_applies_to_every_parameter():
    from mmengine.optim import build_optim_wrapper

    cfg = load_config("debug")
    model = MODELS.build(cfg.model)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    (group,) = wrapper.param_groups
    assert group["weight_decay"] == 0.5
    assert len(group["params"]) == len(list(model.parameters()))
