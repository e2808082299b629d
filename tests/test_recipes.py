"""The recipes of the family: what a config sets is what its authors' recipe is, and what its parameters become."""

import json

import pytest
import torch

from crate_mm.checkpoints import as_checkpoint
from crate_mm.checkpoints.fit import transfer_backbone
from crate_mm.config import load_config, resolve_config
from crate_mm.engine import Runner
from crate_mm.engine.optim.schedule import WarmupCosineLR, scale_lr
from crate_mm.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS, head_for

PARAMETERS = {  # as published, or computed from the authors' code
    "crate_alpha_base_in21k": 86_299_359,
    "crate_alpha_large14_in21k": 272_272_095,
    "tost_tiny_in1k": 5_769_328,
    "tost_small_in1k": 22_589_944,
    "tost_medium_in1k": 71_481_064,
    "cbt_tiny_in1k": 1_789_192,
    "crate_tiny8_in21k": 5_743_057,
    "crate_small8_in21k": 14_118_097,
    "crate_base8_in21k": 38_830_801,
    "crate_base_tied_in1k": 15_708_904,
    "causal_crate_base_owt": 60_699_648,  # positions included
    "causal_crate_overcomplete_pile": 81_934_848,
}
LANGUAGE = ["causal_crate_base_owt", "causal_crate_overcomplete_pile", "causal_crate_1l_pile", "gpt2_base_owt"]
LANGUAGE += ["causal_tost_base_owt", "causal_tost_medium_owt", "causal_tost_large_owt", "causal_aot_base_owt"]
CROP, FLIP = dict(type="DecodeRandomResizedCrop", size=224), dict(type="RandomHorizontalFlip")
RESIZED = [dict(type="DecodeResize", size=256), dict(type="CenterCrop", size=224)]
MICRO = {"model.backbone.arch": dict(embed_dim=32, depth=2, num_heads=2), "model.backbone.img_size": 32}


def build(cfg, device="meta"):
    with torch.device(device):
        return MODELS.build(cfg.model)


def groups(cfg):
    """Names of parameters by (learning rate, weight decay), as training has them after the rate is scaled."""
    cfg = resolve_config(cfg, world_size=1)
    wrapper = scale_lr(cfg.optim_wrapper, cfg.auto_scale_lr, cfg.global_batch_size)
    paramwise = wrapper.pop("paramwise_cfg", None)
    constructor = OPTIM_WRAPPER_CONSTRUCTORS.get("DefaultOptimWrapperConstructor")(wrapper, paramwise)
    built = constructor(build(cfg, "cpu"))
    return {(group["lr"], group["weight_decay"]): set(group["names"]) for group in built.optimizer.param_groups}


def rates(cfg):
    """The rate of the first step, of the last of the warm-up, and of the end, with 100 steps an epoch."""
    lr = scale_lr(cfg.optim_wrapper, cfg.get("auto_scale_lr"), cfg.global_batch_size)["optimizer"]["lr"]
    options = {k: v for k, v in cfg.param_scheduler.items() if k not in ("type", "warmup")}
    end, warmup = 100 * cfg.train_cfg.max_epochs, 100 * cfg.param_scheduler.warmup
    curve = WarmupCosineLR(torch.optim.SGD([torch.zeros(1)], lr=lr), warmup=warmup, end=end, **options)
    return [lr * curve.factor(step) for step in (0, warmup, end)]


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_parameters_are_as_published_and_the_head_is_the_familys(name):
    cfg = load_config(name)
    assert sum(p.numel() for p in build(cfg).parameters()) == PARAMETERS[name]
    head = cfg.model.get("head")
    if head:
        own = {key: value for key, value in head.items() if key not in ("type", "num_classes", "pool")}
        assert own == head_for(cfg.model.backbone.type)


@pytest.mark.parametrize(("name", "patch"), [("crate_alpha_base_in21k", 16), ("crate_alpha_large14_in21k", 14)])
def test_alpha_pretraining(name, patch):
    cfg = load_config(name)
    assert (cfg.model.backbone.patch_size, cfg.model.head.num_classes) == (patch, 19167)
    assert cfg.optim_wrapper.optimizer == dict(type="AdamW", lr=5e-5, betas=(0.9, 0.95), weight_decay=0.1)
    assert cfg.optim_wrapper.clip_grad == dict(max_norm=1.0)
    assert (cfg.global_batch_size, cfg.train_cfg.max_epochs, cfg.param_scheduler.warmup) == (4096, 91, 10)
    assert rates(cfg)[1:] == [pytest.approx(8e-4), pytest.approx(1e-6)]
    assert "label_smoothing" not in cfg.model
    assert "drop_path" not in cfg.model.backbone
    assert cfg.model.batch_augments == [
        dict(type="MixUp", alpha=0.8, prob=0.5),
        dict(type="CutMix", alpha=1.0, prob=0.5),
    ]
    assert cfg.train_dataloader.dataset.transforms == [CROP, FLIP]
    assert cfg.val_dataloader.dataset.transforms == cfg.test_dataloader.dataset.transforms == RESIZED
    assert cfg.data_root == "data/imagenet21k"


def fine_tuning(**overrides):
    pretrained = load_config("crate_alpha_base_in21k").model.to_dict()
    return load_config("transfer/crate_alpha_in1k", overrides, model=pretrained)


def test_alpha_fine_tuning():
    cfg, before = fine_tuning(), load_config("crate_alpha_base_in21k")
    assert cfg.model.backbone == before.model.backbone
    assert cfg.model.head == {**before.model.head, "num_classes": 1000}
    assert cfg.model.label_smoothing == 0.1
    assert cfg.optim_wrapper == {**before.optim_wrapper, "optimizer": {**before.optim_wrapper.optimizer, "lr": 1e-5}}
    assert rates(cfg)[1:] == [pytest.approx(1.6e-4), pytest.approx(1e-6)]
    assert (cfg.global_batch_size, cfg.train_cfg, cfg.param_scheduler.warmup) == (4096, before.train_cfg, 10)
    assert (cfg.resize_positions, cfg.resize_patches) == ("bilinear", "bilinear")
    augment = dict(type="RandAugment", num_ops=2, magnitude=9, num_magnitude_bins=11)
    assert cfg.train_dataloader.dataset.transforms == [CROP, FLIP, augment]
    assert cfg.model.batch_augments == before.model.batch_augments


@pytest.mark.parametrize("which", ["pretraining", "fine-tuning"])
def test_only_alphas_kernels_decay(which):
    micro = {**MICRO, "model.head.num_classes": 5}
    cfg = fine_tuning(**micro) if which == "fine-tuning" else load_config("crate_alpha_base_in21k", micro)
    found = groups(cfg)
    lr = min(found)[0]
    assert lr == pytest.approx(8e-4 if which == "pretraining" else 1.6e-4)
    assert found.keys() == {(lr, 0.1), (lr, 0.0)}
    kernels = {"backbone.embedding.proj.weight", "head.fc.weight"}
    kernels |= {f"backbone.blocks.{n}.compress.{part}.weight" for n in (0, 1) for part in ("proj", "out")}
    assert found[lr, 0.1] == kernels
    everything = {name for name, _ in build(cfg).named_parameters()}
    assert found[lr, 0.0] == everything - kernels
    assert {f"backbone.blocks.1.sparsify.{part}" for part in ("dictionary", "decoder")} < everything - kernels


@pytest.mark.parametrize(
    "switches",
    [("residual",), ("decoupled",), ("decoupled", "residual"), ("overcomplete", "decoupled", "residual")],
)
def test_alphas_ablation_is_overrides(switches):
    """The rule of decay goes with each, whatever dictionaries are there."""
    overrides = {f"model.backbone.{switch}": False for switch in switches}
    cfg = load_config("crate_alpha_base_in21k", {**MICRO, **overrides, "model.head.num_classes": 5})
    decayed = next(names for (_, decay), names in groups(cfg).items() if decay)
    assert decayed
    assert not any("sparsify" in name for name in decayed)
    model = build(cfg)
    block = model.backbone.blocks[0]
    assert block.residual == ("residual" not in switches)
    assert (getattr(block.sparsify, "decoder", None) is not None) == ("decoupled" not in switches)
    assert model(**model.example()).shape == (1, 5)


@pytest.mark.parametrize(("size", "drop_path"), [("tiny", 0.0), ("small", 0.05), ("medium", 0.15)])
def test_tost(size, drop_path):
    cfg = load_config(f"tost_{size}_in1k")
    assert cfg.model.backbone.get("drop_path", 0.0) == drop_path
    assert {block.drop_path.probability for block in build(cfg).backbone.blocks} == {drop_path} if drop_path else {0.0}
    assert cfg.optim_wrapper.optimizer == dict(type="AdamW", lr=5e-4, betas=(0.9, 0.999), weight_decay=0.05)
    assert (cfg.global_batch_size, cfg.train_cfg.max_epochs, cfg.param_scheduler.warmup) == (1024, 400, 5)
    assert rates(cfg) == [pytest.approx(1e-6), pytest.approx(1e-3), pytest.approx(1e-5)]
    assert 1 - cfg.ema_momentum == pytest.approx(0.99996, abs=1e-12)
    assert cfg.model.label_smoothing == 0.1
    erasing, *mixing = cfg.model.batch_augments
    assert erasing == dict(type="BatchRandomErasing", p=0.25)
    assert mixing == [dict(type="MixUp", alpha=0.8), dict(type="CutMix", alpha=1.0)]
    assert cfg.train_dataloader.sampler == dict(repeats=3)
    crop, flip, augment = cfg.train_dataloader.dataset.transforms
    assert (crop, flip) == ({**CROP, "interpolation": "bicubic"}, FLIP)
    assert (augment.type, augment.num_ops, augment.magnitude, augment.num_magnitude_bins) == ("RandAugment", 2, 9, 11)
    whole = [dict(type="Resize", size=224, interpolation="bicubic"), dict(type="CenterCrop", size=224)]
    assert cfg.val_dataloader.dataset.transforms == cfg.test_dataloader.dataset.transforms == whole


def test_cbt():
    """The authors' code, but for its schedule by epoch."""
    cfg = load_config("cbt_tiny_in1k")
    assert (cfg.global_batch_size, cfg.train_cfg.max_epochs, cfg.param_scheduler.warmup) == (256, 150, 20)
    assert rates(cfg) == [pytest.approx(1e-5), pytest.approx(2e-4), 0.0]
    assert cfg.optim_wrapper.optimizer == dict(type="Lion", lr=2e-4, betas=(0.9, 0.99), weight_decay=0.05)
    assert "paramwise_cfg" not in cfg.optim_wrapper  # all parameters decay
    assert cfg.model.label_smoothing == 0.1
    assert cfg.train_dataloader.dataset.transforms == [CROP, FLIP]
    assert cfg.val_dataloader.dataset.transforms == cfg.test_dataloader.dataset.transforms == RESIZED


def test_what_decays_of_tost():
    cfg = load_config("tost_tiny_in1k", {**MICRO, "model.head.num_classes": 5})
    found = groups(cfg)
    lr = min(found)[0]
    assert lr == pytest.approx(1e-3)
    assert found.keys() == {(lr, 0.05), (lr, 0.0)}
    parameters = dict(build(cfg).named_parameters())
    assert found[lr, 0.05] == {name for name, p in parameters.items() if p.ndim > 1} - {"backbone.cls_token"}
    assert "backbone.blocks.0.compress.temp" in found[lr, 0.05]


def test_tosts_fine_tuning_is_two_overrides_of_the_papers():
    overrides = {"global_batch_size": 256, "optim_wrapper.optimizer.lr": 1e-4}
    cfg = load_config("transfer/pets", overrides, model=load_config("tost_tiny_in1k").model.to_dict())
    assert cfg.optim_wrapper.optimizer == dict(type="AdamW", lr=1e-4, weight_decay=0.01)
    assert (cfg.global_batch_size, cfg.train_cfg.max_epochs, cfg.param_scheduler.warmup) == (256, 200, 0)
    assert cfg.train_dataloader.dataset.transforms[-1] == dict(type="RandAugment", num_ops=2, magnitude=14)
    assert resolve_config(cfg, world_size=1).test_dataloader.dataset.transforms[1].size == (224, 224)
    assert cfg.model.head == dict(type="LinearHead", num_classes=37, pool="cls", norm_eps=1e-6, init_std=0.02)


@pytest.mark.parametrize(("name", "heads", "width"), [("tiny", 3, 192), ("small", 6, 384), ("base", 12, 768)])
def test_the_segmentation_papers_sizes(name, heads, width):
    cfg = load_config(f"crate_{name}8_in21k")
    assert cfg.optim_wrapper == dict(optimizer=dict(type="Lion", lr=9.6e-5, weight_decay=0.05))
    assert (cfg.global_batch_size, cfg.train_cfg.max_epochs, cfg.model.head.num_classes) == (4096, 90, 21841)
    assert cfg.train_dataloader.dataset.transforms == [*RESIZED, FLIP]
    backbone = build(cfg).backbone
    assert (backbone.patch_size, backbone.embed_dim, backbone.blocks[0].compress.num_heads) == ((8, 8), width, heads)


def test_the_segmentation_papers_ablation_is_overrides():
    parts = [
        {"model.backbone.sparsify": dict(type="MLP"), "model.backbone.residual": True},
        {"model.backbone.compress": dict(type="SoftmaxAttention")},
    ]
    for overrides in (*parts, parts[0] | parts[1]):
        model = build(load_config("crate_small8_in21k", overrides | {"model.backbone.img_size": 32}))
        block = model.backbone.blocks[0]
        assert block.residual == ("model.backbone.residual" in overrides)
        assert (type(block.sparsify).__name__ == "MLP") == ("model.backbone.sparsify" in overrides)
        assert (type(block.compress).__name__ == "MSSA") == ("model.backbone.compress" not in overrides)
        assert model(**model.example()).shape == (1, 21841)


def test_the_tied_variant_is_crate_base_but_for_its_projection():
    cfg, plain = load_config("crate_base_tied_in1k"), load_config("crate_base_in1k")
    assert cfg.model.backbone == {**plain.model.backbone, "compress": dict(type="MSSA", tied=True)}
    for key in ("optim_wrapper", "global_batch_size", "train_cfg", "param_scheduler", "train_dataloader"):
        assert cfg[key] == plain[key]


@pytest.mark.parametrize("name", ["crate_alpha_large14_in21k", "transfer/crate_alpha_in1k", "tost_small_in1k"])
def test_a_step_and_an_evaluation(name, image_tree, tmp_path):
    """On 12 images in ImageNet's layout: transforms, mixing, groups, schedule and averaging go together."""
    sizes = {**MICRO, "model.backbone.patch_size": 16, "model.head.num_classes": 3}
    data = {"data_root": str(image_tree), "global_batch_size": 12, "train_cfg.max_epochs": 1}
    data["optim_wrapper.optimizer.lr"] = 10.0  # of which the first step of a warm-up takes little
    workers = {f"{split}_dataloader.num_workers": 0 for split in ("train", "val")}
    model = load_config("crate_alpha_base_in21k").model.to_dict() if "transfer" in name else None
    cfg = load_config(name, {**sizes, **data, **workers}, model=model)
    cfg.work_dir, cfg.default_hooks.checkpoint = str(tmp_path), None
    for transform in (*cfg.train_dataloader.dataset.transforms, *cfg.val_dataloader.dataset.transforms):
        transform.update({"size": 32} if "size" in transform else {})
    runner = Runner.from_cfg(cfg)
    before = {name: value.clone() for name, value in runner.model.named_parameters()}
    runner.train()
    assert runner.iter == 1
    assert json.loads((tmp_path / "result.json").read_text())["last"]["top1"] >= 0
    changed = [name for name, value in runner.model.named_parameters() if not torch.equal(value, before[name])]
    assert len(changed) > 0.9 * len(before)


def test_cheap_scaling_takes_all_of_the_backbone(tmp_path):
    """From patches of 32 to patches of 14: kernel and positions are resized as the config says, all else is taken."""
    sizes = {"model.backbone.arch": MICRO["model.backbone.arch"], "model.head.num_classes": 3}
    cfg = load_config("crate_alpha_large14_in21k", sizes)
    torch.manual_seed(0)
    large = MODELS.build(load_config("crate_alpha_large14_in21k", {**sizes, "model.backbone.patch_size": 32}).model)
    model = MODELS.build(cfg.model)
    table = transfer_backbone(
        model, as_checkpoint({"state_dict": large.state_dict()}), cfg.resize_positions, cfg.resize_patches
    )
    assert table.resized.keys() == {"backbone.embedding.pos_embed", "backbone.embedding.proj.weight"}
    assert not any(name.startswith("backbone.") for name in (*table.new, *table.dropped))
    kernel = torch.nn.functional.interpolate(
        large.backbone.embedding.proj.weight, (14, 14), mode="bilinear", antialias=True
    )
    torch.testing.assert_close(model.backbone.embedding.proj.weight, kernel)


@pytest.mark.parametrize("name", LANGUAGE)
def test_the_recipe_is_that_of_nanogpt(name):
    cfg = resolve_config(load_config(name), world_size=1)
    train, val = cfg.train_dataloader.dataset, cfg.val_dataloader.dataset
    assert (train.length, cfg.global_batch_size, cfg.train_cfg.max_steps) == (1024, 480, 600_000)
    assert (cfg.optim_wrapper.type, cfg.optim_wrapper.dtype) == ("AmpOptimWrapper", "bfloat16")
    decay = 0.01 if name == "causal_tost_base_owt" else 0.1
    assert cfg.optim_wrapper.optimizer == dict(type="AdamW", lr=6e-4, betas=(0.9, 0.95), weight_decay=decay)
    assert cfg.optim_wrapper.clip_grad == dict(max_norm=1.0)
    assert (val.drop_last, val.get("random_windows")) == (False, None)
    options = {key: value for key, value in cfg.param_scheduler.items() if key not in ("type", "convert_to_iter_based")}
    schedule = WarmupCosineLR.build_iter_from_epoch(
        torch.optim.SGD([torch.zeros(1)], lr=6e-4),
        epoch_length=train.random_windows // cfg.global_batch_size,
        **{"end": 1, **options, "end_step": cfg.train_cfg.max_steps},
    )
    rates = [6e-4 * schedule.factor(step) for step in (0, 1000, 2000, 600_000)]
    assert rates == pytest.approx([0, 3e-4, 6e-4, 6e-5])


@pytest.mark.parametrize("kind", ["crate", "crate_overcomplete", "tost", "aot", "gpt2"])
def test_parameters_of_more_than_one_dimension_decay_in_language_models(kind):
    cfg = load_config(f"compare_language/{kind}")
    parameters = dict(build(cfg).named_parameters())
    for (_, decay), names in groups(cfg).items():
        assert {0.1 if parameters[name].ndim > 1 else 0.0 for name in names} == {decay}


def test_training_without_validation_is_an_override():
    none = dict.fromkeys(("val_dataloader", "val_cfg", "val_evaluator"))
    cfg = resolve_config(load_config("crate_alpha_base_in21k", none), world_size=1)
    assert cfg.val_dataloader is cfg.val_cfg is cfg.val_evaluator is None
    assert cfg.train_dataloader.batch_size == 4096
