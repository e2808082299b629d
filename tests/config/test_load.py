"""Finding, loading, overriding and preparing configs."""

import inspect
import os
import sys
from functools import cache

import pytest

from crate_mm.config import CONFIGS, dump
from crate_mm.config.kinds import parse_value
from crate_mm.engine import find_config, load_config, resolve_config


@cache
def recipe():
    return load_config("crate_tiny_in1k")


def test_a_config_is_found_by_name_or_path():
    assert find_config("crate_base_in1k") == find_config("configs/crate_base_in1k.py").resolve()


@pytest.mark.parametrize("name", ["crate_bse_in1k", "configs/crate_bse_in1k.py"])
def test_a_missing_config_names_the_closest(name):
    with pytest.raises(ValueError, match=r"does not exist: did you mean .*crate_base_in1k"):
        load_config(name)


READ_BASE = "from mmengine.config import read_base\nwith read_base():\n    from .base import *\n"
MISTAKES = {  # the file that has it, its text, and the message
    "syntax": ("c.py", "model = dict(", r"c.py, line 1 is not valid Python"),
    "base missing": ("c.py", "_base_ = ['./nothing.py']", "cannot be loaded: FileNotFoundError"),
    "name": ("c.py", "_base_ = ['./' + 'base.py']\nx = undefined", "cannot be loaded: NameError: name 'undefined'"),
    "no module": (
        "c.py",
        "custom_imports = dict(imports=['no_module'])",
        "imports fail: ModuleNotFoundError: .*no_mod",
    ),
    "another style": ("c.py", READ_BASE, r"c.py uses read_base\(\), .* write _base_ = "),
    "base's syntax": ("base.py", "x = 1\ny = = 2", r"base.py, line 2 is not valid Python"),
    "own module's syntax": ("own_wrong.py", "def f(:", r"c.py imports .*own_wrong.py, line 1 is not valid"),
    "own module's import": ("own_broken.py", "import not_there", "No module named 'not_there'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_config_or_what_it_names_is_told(tmp_path, mistake):
    name, text, message = MISTAKES[mistake]
    (tmp_path / "base.py").write_text("x = 1\n")
    (tmp_path / "c.py").write_text(
        f"custom_imports = dict(imports=['{name[:-3]}'])" if "own" in name else "_base_ = './base.py'"
    )
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        load_config(tmp_path / "c.py")


def test_bases_that_name_each_other_are_told(tmp_path):
    (tmp_path / "a.py").write_text("_base_ = 'b.py'")
    (tmp_path / "b.py").write_text("_base_ = 'a.py'")
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 100)  # MMEngine would read a thousand files
    try:
        with pytest.raises(ValueError, match=r"a.py: its _base_ files name each other in a circle"):
            load_config(tmp_path / "a.py")
    finally:
        sys.setrecursionlimit(limit)


def test_a_base_may_be_an_expression(tmp_path):
    (tmp_path / "base.py").write_text("x = 1\n")
    (tmp_path / "c.py").write_text("_base_ = ['./' + 'base.py']\ny = 2\n")
    assert load_config(tmp_path / "c.py").to_dict() == {"x": 1, "y": 2}


def test_an_own_module_of_a_name_that_is_imported_already_is_refused(tmp_path):
    """Two configs with a file of one name: the second would take the first's class without a word."""
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "own_same_name.py").write_text("")
        (tmp_path / folder / "c.py").write_text("custom_imports = dict(imports=['own_same_name'])")
    load_config(tmp_path / "first" / "c.py")
    load_config(tmp_path / "first" / "c.py")
    with pytest.raises(
        ValueError, match=r"is .*second/own_same_name.py, but Python has imported .*first/own_same_name"
    ):
        load_config(tmp_path / "second" / "c.py")


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
        "guards.result_file=None",
        "max_batch_per_device=64",
        "ema_momentum=1e-4",
        "model.preprocessor.mean.0=0.3",  # an entry of a tuple
        "model.backbone.arch=dict(embed_dim=48,depth=2,num_heads=3)",
        "optim_wrapper.paramwise_cfg.norm_decay_mult=0",
        "env_cfg.dist_cfg.timeout=7200",
        "log_processor.num_digits=6",
    ],
)
def test_a_setting_can_be_overridden(key):
    name, _, text = key.partition("=")
    value = parse_value(text)
    cfg = load_config(recipe(), {name: value})
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
        ("train_dataloader.dataset.transforms.7.size", "is a list of 2 and has no entry '7'"),
        ("train_dataloader.dataset.transforms.0.sizes", "did you mean size"),
        ("param_scheduler.warm_up", "did you mean warmup"),
        ("optim_wrapper.clip_grad.max_nrom", "did you mean max_norm"),
        ("optim_wrapper.paramwise_cfg.norm_decay_mul", "did you mean norm_decay_mult"),
        ("randomness.sed", "did you mean seed"),
        ("guards.result_fil", "guards has no 'result_fil': did you mean result_file"),
        ("global_batch_size.x", "global_batch_size is 2048 and has no 'x'"),
        ("train_dataloader.batch_size", "derived from global_batch_size"),
    ],
)
def test_a_misspelt_setting_is_refused(key, message):
    with pytest.raises(ValueError, match=message):
        load_config(recipe(), {key: 1})


def test_settings_of_an_overridden_type_are_known():
    overrides = {"optim_wrapper.optimizer.momentum": 0.9, "optim_wrapper.optimizer.type": "SGD"}
    cfg = load_config(recipe(), overrides)
    assert cfg.optim_wrapper.optimizer.momentum == 0.9
    with pytest.raises(ValueError, match="has no 'momentum'"):
        load_config(recipe(), {"optim_wrapper.optimizer.momentum": 0.9})


def test_data_root_goes_to_every_dataset_that_takes_one():
    cfg = resolve_config(load_config(recipe(), {"data_root": "/x"}), world_size=16)
    assert {cfg[name].dataset.source.root for name in ("train_dataloader", "val_dataloader", "test_dataloader")} == {
        "/x"
    }
    assert "root" not in resolve_config(load_config("debug"), world_size=1).train_dataloader.dataset.source


def test_the_batch_follows_from_the_recipe():
    cfg = resolve_config(load_config(recipe()), world_size=16)
    assert (cfg.train_dataloader.batch_size, cfg.train_cfg.micro_batches) == (128, 1)
    cfg = resolve_config(load_config(recipe(), {"max_batch_per_device": 256}), world_size=2)
    assert (cfg.train_dataloader.batch_size, cfg.train_cfg.micro_batches) == (1024, 4)
    assert cfg.optim_wrapper.accumulative_counts == 4


def test_preparing_leaves_the_users_config_alone():
    cfg = load_config(recipe())
    text = cfg.pretty_text
    resolve_config(cfg, world_size=16)
    assert cfg.pretty_text == text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-2.4e-4", -2.4e-4),
        ("true", True),
        ("None", None),
        ("/data/a folder, with a comma", ["/data/a folder", " with a comma"]),
        ("/data/a folder", "/data/a folder"),
        ("'/data/a, b'", "/data/a, b"),
        ("a,1,b", ["a", 1, "b"]),
        ("(8,12)", (8, 12)),
        ("[1,[2,3]]", [1, [2, 3]]),
        ("dict(a=1,b='x')", {"a": 1, "b": "x"}),
        ("[dict(a=(1, 2), b=[dict()])]", [{"a": (1, 2), "b": [{}]}]),
        ("{'a': 1}", {"a": 1}),
        ("(8,12", "(8,12"),
        ("eval(open('x'))", "eval(open('x'))"),
    ],
)
def test_values_are_read_as_python_reads_them(text, value):
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(model=None), "the config has no model"),
        (dict(optim_wrapper=None), "the config has a train_dataloader but no optim_wrapper"),
        (dict(train_cfg=None), "but no train_cfg"),
        (dict(global_batch_size=None), "the config has no global_batch_size"),
        (
            dict(train_dataloader=dict(batch_size=3, dataset=dict(source=[]))),
            "train_dataloader.batch_size cannot be set",
        ),
        (dict(train_dataloader=dict(dataset=dict(root="x"))), "train_dataloader.dataset must be a dict.type=...."),
        (dict(guards=dict(result_fil=None)), "guards has no 'result_fil': did you mean result_file"),
        (dict(optim_wrapper=dict(optimizer=dict(type="Lion", lr=-1))), "optimizer.lr must be a number above 0, got -1"),
        (
            dict(optim_wrapper=dict(optimizer=dict(type="Lion", lr=None))),
            "optimizer.lr must be a number above 0, got None",
        ),
        (dict(ema_momentum=3), "must be a float between 0 and 1, or None, got 3"),
        (dict(compile_blocks="maybe"), "compile_blocks must be one of True, False, 'backbone', None, got 'maybe'"),
        (dict(zero=3), "zero must be one of True, False, got 3"),
        (
            dict(optim_wrapper=dict(max_skipped_steps=-2)),
            "optim_wrapper.max_skipped_steps must be a non-negative integer, got -2",
        ),
        (dict(train_cfg=dict(max_epochs=0)), "train_cfg.max_epochs must be a positive integer, got 0"),
        (dict(train_cfg=dict(max_epochs=1, val_interval=0)), "train_cfg.val_interval must be"),
    ],
)
def test_a_config_that_lacks_a_part_is_told(change, message):
    cfg = load_config("debug")
    for key, value in change.items():
        cfg[key] = value
    with pytest.raises(ValueError, match=message):
        resolve_config(cfg, world_size=1)


def test_workers_are_at_most_the_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    assert resolve_config(load_config(recipe()), world_size=1).train_dataloader.num_workers == 12
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert resolve_config(load_config(recipe()), world_size=4).train_dataloader.num_workers == 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "32")
    loader = resolve_config(load_config(recipe()), world_size=32).train_dataloader
    assert (loader.num_workers, loader.persistent_workers) == (0, False)


@pytest.mark.parametrize(
    ("seen", "share"),
    [(12, 12), (96, 12), (4, 4)],  # bound to 12 of 96 cores; not bound; bound to 4
)
def test_what_srun_has_bound_a_task_to_is_its_share(monkeypatch, seen, share):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(seen)))
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "8")
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "96")
    assert resolve_config(load_config(recipe()), world_size=8).train_dataloader.num_workers == share


@pytest.mark.parametrize("variable", ["wobble.degrees", "enlarge", "enlarge.size"])
def test_a_helper_variable_is_no_setting(variable):
    """It is used up when the file is read: to override it would change nothing."""
    name = variable.partition(".")[0]
    with pytest.raises(ValueError, match=f"--cfg-options {variable}: {name} is a variable of the config's file"):
        load_config("crate_tiny_digits", {variable: 20})


def test_a_config_without_a_model_takes_one():
    cfg = load_config("transfer/digits", model=load_config("crate_mini_fashion_mnist").model.to_dict())
    assert cfg.model.backbone.arch == dict(embed_dim=192, depth=6, num_heads=6)
    assert cfg.model.head == dict(type="LinearHead", num_classes=10, pool="mean")
    assert cfg.model.preprocessor.mean == (0.3053,)  # the config's own
    probe = {**load_config("debug").model.to_dict(), "freeze_backbone": True, "label_smoothing": 0.3}
    assert "freeze_backbone" not in load_config("transfer/pets", model=probe).model
    assert load_config("debug", model={"type": "Other"}).model.type == "ImageClassifier"
    with pytest.raises(ValueError, match="the config does not define its model: use --load-from CHECKPOINT for a"):
        resolve_config(load_config("transfer/pets"), world_size=1)


@pytest.mark.parametrize("number", ["inf", "-inf", "nan"])
def test_a_number_that_is_not_finite_survives_the_work_folder(tmp_path, number):
    """The config that a run leaves behind has to load again."""
    (tmp_path / "mine.py").write_text(f"x = dict(a=[1, (2.5, float('{number}'))], b='inf')\n")
    dump(load_config(tmp_path / "mine.py"), tmp_path / "dumped.py")
    again = load_config(tmp_path / "dumped.py").x
    assert repr(again.a[1][1]) == number.removeprefix("+")
    assert (again.a[0], again.a[1][0], again.b) == (1, 2.5, "inf")


def test_a_tilde_is_the_home_folder_in_every_path_of_a_config(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.py").write_text("_base_ = ['" + str(CONFIGS / "debug.py") + "']\nwork_dir = '~/runs'\n")
    cfg = load_config("~/mine.py", {"load_from": "~/a.pth"})
    ready = resolve_config(cfg)
    assert (ready.work_dir, ready.load_from) == (str(tmp_path / "runs"), str(tmp_path / "a.pth"))


CHILDREN = {
    "val alone": ("val_dataloader = dict(batch_size=7)", 7, 7),
    "val alone, with another type": ("val_dataloader = dict(_delete_=True, dataset=dict(type='X'))", None, None),
    "test named": ("val_dataloader = dict(batch_size=7)\ntest_dataloader = dict()", 7, 150),
    "both": ("val_dataloader = dict(batch_size=7)\ntest_dataloader = dict(batch_size=8)", 7, 8),
    "both at once": ("val_dataloader, test_dataloader = dict(batch_size=7), dict(batch_size=8)", 7, 8),
    "test alone": ("test_dataloader = dict(batch_size=8)", 150, 8),
    "nothing": ("global_batch_size = 3", 150, 150),
}


@pytest.mark.parametrize("text", CHILDREN)
def test_the_test_follows_a_validation_that_is_changed_alone(tmp_path, text):
    body, val, test = CHILDREN[text]
    (tmp_path / "child.py").write_text(f"_base_ = ['{find_config('debug')}']\n{body}")
    (tmp_path / "grandchild.py").write_text("_base_ = ['child.py']\nglobal_batch_size = 5")
    for name in ("child", "grandchild"):
        cfg = load_config(tmp_path / f"{name}.py")
        assert (cfg.val_dataloader.get("batch_size"), cfg.test_dataloader.get("batch_size")) == (val, test)


def test_a_test_of_its_own_follows_no_validation(tmp_path):
    base = f"_base_ = ['{find_config('debug')}']\ntest_evaluator = dict(topk=(1,))"
    (tmp_path / "base.py").write_text(base)
    (tmp_path / "child.py").write_text("_base_ = ['base.py']\nval_evaluator = dict(topk=(1, 3))\nval_dataloader = None")
    cfg = load_config(tmp_path / "child.py")
    assert (cfg.val_evaluator.topk, cfg.test_evaluator.topk) == ((1, 3), (1,))
    assert (cfg.val_dataloader, cfg.test_dataloader.batch_size) == (None, 150)


def test_a_changed_validation_is_told(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr("crate_mm.config.load.print_log", lambda message, _: told.append(message))
    (tmp_path / "told.py").write_text(f"_base_ = ['{find_config('debug')}']\nval_evaluator = dict(topk=(1, 2))")
    assert load_config(tmp_path / "told.py").test_evaluator.topk == (1, 2)
    assert ["changes val_evaluator: test_evaluator follows it" in message for message in told] == [True]
