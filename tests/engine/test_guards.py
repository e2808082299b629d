"""What keeps the promises: it is there whatever hooks a config adds, and goes by name alone."""

import json

import pytest

from crate_mm.config import find_config, load_config, resolve_config
from crate_mm.config.settings import GUARDS
from crate_mm.engine import Runner
from crate_mm.registry import HOOKS

DEBUG = find_config("debug")


def hooks_of(text, tmp_path):
    (tmp_path / "mine.py").write_text(f"_base_ = ['{DEBUG}']\n{text}\n")
    cfg = load_config(tmp_path / "mine.py")
    cfg.work_dir = str(tmp_path / "w")
    return [type(hook).__name__ for hook in Runner.from_cfg(cfg).hooks]


def test_every_guard_is_a_hook_and_says_what_is_lost_without_it():
    for name, guard in GUARDS.items():
        assert HOOKS.get(guard.type)
        assert guard.effect_if_off, name


@pytest.mark.parametrize(
    "text",
    [
        "custom_hooks = [dict(type='EMAHook', momentum=0.1)]",
        "custom_hooks = None",
        "guards = dict()",
        "custom_hooks = [dict(type='ResultFile'), dict(type='SeedEachIteration')]",  # as an older config has them
    ],
)
def test_hooks_of_ones_own_replace_no_guard(text, tmp_path):
    found = hooks_of(text, tmp_path)
    assert [found.count(guard.type) for guard in GUARDS.values()] == [1] * len(GUARDS)
    assert ("EMAHook" in found) == ("EMAHook" in text)


@pytest.mark.parametrize("name", GUARDS)
def test_a_guard_is_switched_off_by_name_and_that_is_logged(name, tmp_path):
    found = hooks_of(f"guards = dict({name}=None)", tmp_path)
    assert [guard.type for guard in GUARDS.values() if guard.type not in found] == [GUARDS[name].type]
    (log,) = (tmp_path / "w").glob("*/*.log")
    assert f"the guard {name} is off: {GUARDS[name].effect_if_off}" in log.read_text()


def test_a_guard_takes_settings(tmp_path):
    cfg = load_config("debug", {"guards.log_history": dict(keep=7)})
    (hook,) = [hook for hook in resolve_config(cfg, world_size=1).custom_hooks if hook.type == "TrimLogHistory"]
    assert hook.keep == 7


@pytest.mark.slow
def test_a_run_that_diverges_stops_with_a_hook_added(run_tool, tmp_path):
    config = tmp_path / "mine.py"
    config.write_text(f"_base_ = ['{DEBUG}']\ncustom_hooks = [dict(type='EMAHook')]\n")
    options = ("--cfg-options", "optim_wrapper.optimizer.lr=1e30", "train_cfg.max_epochs=3")
    done = run_tool("train", config, "--work-dir", tmp_path / "w", *options)
    assert done.code == 2, done.output
    assert "not finite" in done.output
    done = run_tool("train", config, "--work-dir", tmp_path / "v", "--cfg-options", "train_cfg.max_epochs=1")
    assert done.code == 0, done.output
    assert json.loads((tmp_path / "v" / "result.json").read_text())["finished"]
