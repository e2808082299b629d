"""Finding, loading, overriding and preparing configs."""

import pytest
from mmengine.config import DictAction

from crate_mm.engine import find_config, load_config, prepare


def test_a_config_is_found_by_name_or_path():
    assert find_config("crate_base_in1k") == find_config("configs/crate_base_in1k.py").resolve()


@pytest.mark.parametrize("name", ["crate_bse_in1k", "configs/crate_bse_in1k.py"])
def test_a_missing_config_names_the_closest(name):
    with pytest.raises(ValueError, match=r"does not exist: did you mean .*crate_base_in1k"):
        load_config(name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model = dict(", r"bad.py, line 1 is not valid Python"),
        ("_base_ = ['./nothing.py']", "cannot be loaded: FileNotFoundError"),
        ("x = undefined_name", "cannot be loaded: NameError: name 'undefined_name'"),
        (
            "custom_imports = dict(imports=['no_such_module'])",
            "custom_imports fail: ModuleNotFoundError: .*no_such_module",
        ),
    ],
)
def test_an_error_in_a_config_is_told(tmp_path, text, message):
    path = tmp_path / "bad.py"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_config(path)


def test_a_syntax_error_in_a_base_names_the_base(tmp_path):
    (tmp_path / "base.py").write_text("x = 1\ny = = 2")
    (tmp_path / "leaf.py").write_text("_base_ = './base.py'")
    with pytest.raises(ValueError, match=r"base.py, line 2 is not valid Python"):
        load_config(tmp_path / "leaf.py")


def test_an_import_error_inside_an_own_module_is_told(tmp_path):
    (tmp_path / "own_broken_module.py").write_text("import a_package_that_is_not_there")
    (tmp_path / "c.py").write_text("custom_imports = dict(imports=['own_broken_module'])")
    with pytest.raises(ValueError, match="No module named 'a_package_that_is_not_there'"):
        load_config(tmp_path / "c.py")


@pytest.mark.parametrize(
    "key",
    [
        "data_root=/x",
        "train_cfg.max_epochs=3",
        "train_cfg.val_begin=2",  # not in the config, an argument of the loop
        "model.backbone.ista_lambda=0.2",
        "model.backbone.head_dim=8",  # not in the config, an argument of CRATE
        "model.head.pool=mean",
        "optim_wrapper.clip_grad.max_norm=1",
        "optim_wrapper.optimizer.betas=(0.9,0.95)",
        "default_hooks.checkpoint.interval=5",
        "default_hooks.checkpoint.save_last=False",
        "default_hooks.logger.interval=1",
        "train_dataloader.num_workers=0",
        "train_dataloader.prefetch_factor=4",
        "train_dataloader.dataset.source.split=val",
        "train_dataloader.dataset.transforms.0.size=160",
        "train_dataloader.dataset.transforms.0.antialias=False",
        "param_scheduler.warmup=1",
        "param_scheduler.end=3",
        "randomness.deterministic=True",
        "custom_hooks.1.type=CheckInvalidLossHook",
        "max_batch_per_device=64",
        "ema_momentum=1e-4",
    ],
)
def test_a_setting_can_be_overridden(key):
    name, _, text = key.partition("=")
    value = DictAction._parse_iterable(text)
    cfg = load_config("crate_tiny_in1k", {name: value})
    for part in name.split("."):
        cfg = cfg[int(part)] if part.isdigit() else cfg[part]
    assert cfg == (list(value) if isinstance(value, tuple) and isinstance(cfg, list) else value)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("train_cfg.max_epoch", "train_cfg has no 'max_epoch': did you mean max_epochs"),
        ("modle.backbone.arch", "the config has no 'modle': did you mean model"),
        ("model.backbone.ista_lamda", "model.backbone has no 'ista_lamda': did you mean ista_lambda"),
        ("optim_wrapper.optimizer.wieght_decay", "did you mean weight_decay"),
        ("optim_wrapper.clip_gard.max_norm", "did you mean clip_grad"),
        ("train_dataloader.num_worker", "did you mean num_workers"),
        ("default_hooks.checkpoint.intervall", "did you mean interval"),
        ("default_hooks.logegr.interval", "did you mean logger"),
        ("train_dataloader.dataset.transforms.7.size", "is a list of 2, it has no entry '7'"),
        ("train_dataloader.dataset.transforms.0.sizes", "did you mean size"),
        ("param_scheduler.warm_up", "did you mean warmup"),
        ("randomness.sed", "did you mean seed"),
        ("global_batch_size.x", "global_batch_size is 2048, it has no 'x'"),
        ("train_dataloader.batch_size", "follows from global_batch_size"),
    ],
)
def test_a_misspelt_setting_is_refused(key, message):
    with pytest.raises(ValueError, match=message):
        load_config("crate_tiny_in1k", {key: 1})


def test_a_word_for_a_number_is_refused():
    with pytest.raises(ValueError, match="a int is wanted, as 150; got 'many'"):
        load_config("crate_tiny_in1k", {"train_cfg.max_epochs": "many"})


def test_settings_of_an_overridden_type_are_known():
    overrides = {"optim_wrapper.optimizer.momentum": 0.9, "optim_wrapper.optimizer.type": "SGD"}
    cfg = load_config("crate_tiny_in1k", overrides)
    assert cfg.optim_wrapper.optimizer.momentum == 0.9
    with pytest.raises(ValueError, match="has no 'momentum'"):
        load_config("crate_tiny_in1k", {"optim_wrapper.optimizer.momentum": 0.9})


def test_data_root_goes_to_every_dataset_that_takes_one():
    cfg = prepare(load_config("crate_tiny_in1k", {"data_root": "/x"}), world_size=16)
    assert {cfg[name].dataset.source.root for name in ("train_dataloader", "val_dataloader", "test_dataloader")} == {
        "/x"
    }
    assert "root" not in prepare(load_config("debug"), world_size=1).train_dataloader.dataset.source


def test_the_batch_follows_from_the_recipe():
    cfg = prepare(load_config("crate_tiny_in1k"), world_size=16)
    assert (cfg.train_dataloader.batch_size, cfg.train_cfg.micro_batches) == (128, 1)
    cfg = prepare(load_config("crate_tiny_in1k", {"max_batch_per_device": 256}), world_size=2)
    assert (cfg.train_dataloader.batch_size, cfg.train_cfg.micro_batches) == (1024, 4)
    assert cfg.optim_wrapper.accumulative_counts == 4


def test_preparing_leaves_the_users_config_alone():
    cfg = load_config("crate_tiny_in1k")
    text = cfg.pretty_text
    prepare(cfg, world_size=16)
    assert cfg.pretty_text == text
