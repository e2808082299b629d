"""Every config of the folder: it builds, and says what it is."""

import ast
import copy
import json
from functools import cache

import pytest
import torch

from crate_mm.config import fill_images, lacks_num_classes
from crate_mm.engine import CONFIGS, Runner, load_config, resolve_config
from crate_mm.models.arch import Arch, resolve_arch
from crate_mm.models.families import CRATE
from crate_mm.models.families.causal import CausalBackbone
from crate_mm.registry import BACKBONES, DATASETS, LOOPS, METRICS, MODELS, OPTIMIZERS, PARAM_SCHEDULERS
from tests.dataset_formats import WRITERS

LEAVES = sorted(p for p in CONFIGS.rglob("*.py") if "_base_" not in p.parts)
LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")


@cache
def model_of(name) -> dict:
    return load_config(name).model.to_dict()


def load(path, **overrides):
    """A config; one that does not name its model, with that of a checkpoint of another task."""
    small = any(name in str(path) for name in ("digits", "fashion_mnist"))
    other = "crate_mini_fashion_mnist" if small else "crate_tiny_in1k"
    other = "crate_alpha_base_in21k" if "crate_alpha" in str(path) else other
    return load_config(path, overrides, model=copy.deepcopy(model_of(other)))


def with_two_layers(backbone) -> None:
    """Keep the width and the heads of a backbone's size, but not its depth."""
    kind = BACKBONES.get(backbone.type)
    archs = kind.archs if issubclass(kind, CausalBackbone) else kind.sizes.archs
    arch = backbone.arch if isinstance(backbone.arch, str) else dict(backbone.arch)
    backbone.arch = {**resolve_arch(arch, archs)._asdict(), "depth": 2}


@cache
def built(model: str) -> tuple[torch.nn.Module, torch.Tensor]:
    """A model without memory for its weights, and its output for an example; many configs have the same."""
    with torch.device("meta"):
        model = MODELS.build(dict(eval(model)))
        return model, model(**model.example())


@pytest.mark.parametrize("path", LEAVES, ids=lambda p: str(p.relative_to(CONFIGS)))
@pytest.mark.slow
def test_every_config_builds(path):
    cfg = resolve_config(load(path), world_size=1)
    if lacks_num_classes(cfg):
        cfg.model.head.num_classes = 5
    with_two_layers(cfg.model.backbone)
    model, output = built(repr(sorted(cfg.model.items())))
    if "head" in cfg.model:
        pixels = model.example()["inputs"].shape[-2:] if model.labels_pixels else ()
        assert output.shape == (1, cfg.model.head.num_classes, *pixels)
    elif cfg.model.type == "SelfDistillation":
        assert output.shape == (1, model.backbone.embed_dim)
    elif cfg.model.type == "LanguageModel":
        assert output.shape == (1, model.backbone.context_length, model.backbone.vocab_size)
        for name in LOADERS:
            assert cfg[name].dataset.length <= model.backbone.context_length
    else:
        assert output.shape == model.patchify(model.example()["inputs"]).shape
    for name in LOADERS:
        assert "data_root" in cfg
        assert DATASETS.get(cfg[name].dataset.type)
        assert DATASETS.get((cfg[name].dataset.get("source") or cfg[name].dataset).type)
    OPTIMIZERS.build({**cfg.optim_wrapper.optimizer, "params": [torch.nn.Parameter(torch.zeros(1))]})
    for schedule in cfg.param_scheduler if isinstance(cfg.param_scheduler, list) else [cfg.param_scheduler]:
        PARAM_SCHEDULERS.get(schedule.type)
    LOOPS.get(cfg.train_cfg.type)
    if cfg.val_evaluator.type == "KNNMetric":  # its bank needs the data
        cfg.val_evaluator.bank = [0] * 20
    METRICS.build(cfg.val_evaluator)


@pytest.mark.parametrize("path", LEAVES, ids=lambda p: str(p.relative_to(CONFIGS)))
def test_every_config_is_its_own_model_card(path):
    tree = ast.parse(path.read_text())
    text = ast.get_docstring(tree)
    assert path.name in text, "the docstring gives the command"
    assert all(isinstance(node, (ast.Expr, ast.Assign)) for node in tree.body)


MODELS_OF_TABLE_1 = ["crate_tiny", "crate_small", "crate_base", "crate_large", "vit_tiny", "vit_small"]
TRANSFER = {"cifar10": 10, "cifar100": 100, "flowers102": 102, "pets": 37}


@pytest.mark.parametrize("size", ["small", "base"])
def test_masked_pretraining_is_the_mae_codes_recipe(size):
    cfg = load_config(f"crate_mae_{size}_in1k")
    assert cfg.model.backbone == dict(
        type="CRATEMAE", arch=size, img_size=224, patch_size=16, ista_step_size=0.1, ista_lambda=0.5
    )
    assert (cfg.model.mask_ratio, cfg.model.norm_pix_loss) == (0.75, True)
    lr = 1.5e-4 * cfg.global_batch_size / 256
    assert cfg.optim_wrapper.optimizer == dict(type="AdamW", lr=pytest.approx(lr), betas=(0.9, 0.95), weight_decay=0.05)
    assert (cfg.global_batch_size, cfg.train_cfg.max_epochs, cfg.param_scheduler.warmup) == (4096, 800, 40)
    assert cfg.train_dataloader.dataset.transforms == [
        dict(type="DecodeRandomResizedCrop", size=224, scale=(0.2, 1.0), interpolation="bicubic"),
        dict(type="RandomHorizontalFlip"),
    ]
    assert cfg.val_evaluator == cfg.test_evaluator == dict(type="ReconstructionLoss")


@pytest.mark.parametrize("name", MODELS_OF_TABLE_1)
def test_in1k_is_the_papers_recipe(name):
    cfg, (family, size) = load_config(f"{name}_in1k"), name.split("_")
    crate = dict(type="CRATE", arch=size, img_size=224, patch_size=16, ista_step_size=0.1, ista_lambda=0.1)
    vit = dict(type="ViT", arch=size, img_size=224, patch_size=16)
    assert cfg.model.backbone == (crate if family == "crate" else vit)
    assert (cfg.model.head.num_classes, cfg.model.head.pool, cfg.model.label_smoothing) == (1000, "cls", 0.1)
    assert cfg.optim_wrapper == dict(optimizer=dict(type="Lion", lr=2.4e-4, weight_decay=0.5))
    assert (cfg.global_batch_size, cfg.train_cfg.max_epochs, cfg.param_scheduler.warmup) == (2048, 150, 5)
    assert cfg.train_dataloader.dataset.transforms == [
        dict(type="DecodeRandomResizedCrop", size=224),
        dict(type="RandomHorizontalFlip"),
    ]
    for loader in (cfg.val_dataloader, cfg.test_dataloader):
        assert loader.dataset.transforms == [dict(type="DecodeResize", size=256), dict(type="CenterCrop", size=224)]
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


@pytest.mark.parametrize("dataset", TRANSFER)
@pytest.mark.parametrize("name", ["crate_base", "vit_small"])
def test_transfer_is_the_papers_recipe(name, dataset):
    """Whatever the model, which the checkpoint names: each cell of Table 1 is one command."""
    pretraining = load_config(f"{name}_in1k")
    cfg = load_config(f"transfer/{dataset}", model=pretraining.model.to_dict())
    assert cfg.model.backbone == pretraining.model.backbone
    assert cfg.model.head == {**pretraining.model.head, "num_classes": TRANSFER[dataset]}
    assert cfg.model.preprocessor == pretraining.model.preprocessor
    assert "label_smoothing" not in cfg.model
    assert cfg.optim_wrapper == dict(optimizer=dict(type="AdamW", lr=5e-5, weight_decay=0.01))
    assert (cfg.global_batch_size, cfg.train_cfg.max_epochs) == (510 if dataset == "flowers102" else 512, 200)
    fill_images(cfg)
    train, test = cfg.train_dataloader.dataset, cfg.test_dataloader.dataset
    assert train.transforms[-1] == dict(type="RandAugment", num_ops=2, magnitude=14)
    assert [t.type for t in train.transforms] == [
        *("ConvertChannels", "Resize", "RandomCrop", "RandomHorizontalFlip", "RandAugment")
    ]
    assert (train.transforms[2].size, train.transforms[2].padding) == ((224, 224), 28)
    assert test.transforms == [dict(type="ConvertChannels", channels=3), dict(type="Resize", size=(224, 224))]
    splits = dict(flowers102=("train", "test"), pets=("trainval", "test")).get(dataset, (None, None))
    assert (train.source.get("split"), test.source.get("split")) == splits
    assert (train.source.get("train"), test.source.get("train")) == (
        (True, False) if splits[0] is None else (None, None)
    )


def test_the_leaf_to_copy_inherits_and_names_its_model():
    cfg, base = load_config("transfer/crate_base_folder"), load_config("transfer/folder")
    assert cfg.model.backbone.arch == "base"
    for key in ("optim_wrapper", "train_cfg", "train_dataloader", "global_batch_size"):
        assert cfg[key] == base[key]


def test_linear_probe_changes_any_config():
    for name in ("transfer/crate_base_folder", "debug"):
        plain, cfg = (
            load_config(name),
            load_config(name, {"optim_wrapper.optimizer.lr": 0.5}, "transfer/linear_probe.py"),
        )
        assert cfg.model == {**plain.model, "freeze_backbone": True}
        assert cfg.optim_wrapper.optimizer == dict(type="AdamW", lr=0.5, weight_decay=0.0)


# One step on all of the tiny data: two layers, small images.
SMALL = {"train_dataloader.num_workers": 0, "val_dataloader.num_workers": 0, "train_cfg.max_epochs": 1}
SAMPLES = {"ImageNet": 1000, "FashionMNIST": 40, "ClassFolders": 16}
# Of each dataset's format one, where no command of a README trains the config, which test_readmes.py runs.
RUNS = ["vit_small_in1k", "transfer/cifar10", "transfer/cifar100", "transfer/flowers102", "transfer/crate_base_folder"]
RUNS += ["vit_mini_fashion_mnist"]


@pytest.fixture(scope="session")
def published_data(tmp_path_factory):
    """Tiny datasets in the published formats, by the source's name; torchvision's checksums are those of these."""
    patch = pytest.MonkeyPatch()
    roots = {name: tmp_path_factory.mktemp(name) for name in WRITERS}
    for name, write in WRITERS.items():
        write(roots[name], patch.setattr)
    yield roots
    patch.undo()


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.slow
def test_a_step_and_an_evaluation(name, published_data, tmp_path):
    cfg = load(name)
    source = cfg.train_dataloader.dataset.source.type
    backbone = cfg.model.backbone
    archs = getattr(BACKBONES.get(backbone.type), "sizes", CRATE.sizes).archs  # CRATE-MAE's are CRATE's
    size = archs[backbone.arch] if isinstance(backbone.arch, str) else Arch(**backbone.arch)
    options = {
        **SMALL,
        "data_root": str(published_data[source]),
        "global_batch_size": SAMPLES.get(source, 20),
        "model.backbone.arch": size._replace(embed_dim=96, depth=2, num_heads=3)._asdict(),
    }
    if backbone.img_size == 224:
        options["model.backbone.img_size"] = 32
    cfg = load(name, **options)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        for transform in loader.dataset.transforms:
            if transform.get("size") == 224:
                transform.size = 32
            elif transform.get("size") == (224, 224):
                transform.size = (32, 32)
    cfg.work_dir, cfg.test_dataloader = str(tmp_path), cfg.val_dataloader
    cfg.default_hooks.checkpoint = None
    runner = Runner.from_cfg(cfg)
    before = {key: value.clone() for key, value in runner.model.state_dict().items()}
    runner.train()
    assert runner.iter == 1
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["last"][result["headline"]["metric"]] >= 0
    named_by_folder = source == "ClassFolders"
    assert result["dataset"] == (published_data[source].name if named_by_folder else source)
    changed = [key for key, value in runner.model.state_dict().items() if not torch.equal(value, before[key])]
    assert len(changed) > 0.9 * len(before)
